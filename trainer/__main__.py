"""The process: `trainer`, or `python -m trainer`."""

import gc

from trainer.cli import main
from trainer.memory import keep_freed_memory


def run() -> None:
    """Run the command line with the memory that suits it."""
    keep_freed_memory()
    try:
        main()
    finally:
        gc.freeze()  # what goes with the process need not be searched for cycles: a second at the end of a fit


if __name__ == "__main__":
    run()
