"""The command `serving`, also as `python -m serving`."""

import os
import signal
import sys


def main() -> None:
    """Run the command line, which takes most of a second to import.

    SIGTERM ends it meanwhile: the system keeps it from a container's first process, which has PID 1, until that asks.
    """
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)  # ours: several workers are given it, see `workers`
    from serving import cli

    cli.main()


if __name__ == "__main__":  # a worker process imports this module again, and must not start another server
    main()
