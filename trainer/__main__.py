"""The process: `trainer`, or `python -m trainer`."""

import gc
import os
import signal


def run() -> None:
    """Run the command line with the memory that suits it. Ctrl-C ends its import without the frames of that."""
    interrupt = signal.getsignal(signal.SIGINT)
    if interrupt is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda number, _: os._exit(128 + number))
    from trainer.cli import main
    from trainer.memory import keep_freed_memory

    signal.signal(signal.SIGINT, interrupt)
    keep_freed_memory()
    try:
        main()
    finally:
        gc.freeze()  # what goes with the process need not be searched for cycles: a second at the end of a fit


if __name__ == "__main__":
    run()
