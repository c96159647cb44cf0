"""Run as `python -m serving`."""

from serving.cli import main

if __name__ == "__main__":  # a worker process imports this module again, and must not start another server
    main()
