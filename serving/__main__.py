"""The command `serving`, also as `python -m serving`."""

import os
import signal


def main() -> None:
    """Run the command line, which takes most of a second to import.

    SIGTERM ends it meanwhile: the system keeps it from a container's first process, which has PID 1, until that asks.
    So does Ctrl-C, without the frames of an import.
    """
    _open_standard_streams()
    interrupt = signal.getsignal(signal.SIGINT)
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as of a shell's background
            signal.signal(number, lambda number, _: os._exit(128 + number))
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # at import: strangers would write lines between ours
    os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)  # ours: several workers are given it, see `workers`
    from serving import cli

    signal.signal(signal.SIGINT, interrupt)
    cli.main()


def _open_standard_streams() -> None:
    """Open what was closed on nothing: the next file would have its number, and uvloop would abort at the exit."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


if __name__ == "__main__":  # a worker process imports this module again, and must not start another server
    main()
