"""Start and stop a server again and again while callers are there: `python exits.py MODELS COUNT`."""

import sys
import threading
from pathlib import Path

import grpc
from running import Running, classify, plain_channel

CALLERS = 3


def exit_under_load(models):
    """Begin with callers at work, and end the server without a time for what is under way."""
    stopping = threading.Event()
    with Running(models, drain_s=0) as server, plain_channel(server.address) as channel:
        answered = threading.Barrier(CALLERS + 1)

        def call():
            classify(channel)
            answered.wait()
            while not stopping.is_set():
                try:
                    classify(channel)
                except grpc.RpcError:
                    return

        callers = [threading.Thread(target=call, daemon=True) for _ in range(CALLERS)]
        for caller in callers:
            caller.start()
        answered.wait()
        stopping.set()
        for caller in callers:
            caller.join()


if __name__ == "__main__":
    for _ in range(int(sys.argv[2])):
        exit_under_load(Path(sys.argv[1]))
