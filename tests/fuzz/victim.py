"""The picture code in a process of its own, so that an input that crashes it, or takes all memory, is known.

One JSON line of options and so many bytes in; one line out: `ok`, the code of an ImageError, or what it must not be.
"""

import json
import os
import resource
import select
import subprocess
import sys
from pathlib import Path

import numpy as np

from bundle.errors import ImageError
from bundle.preprocess import DecodeLimits, PreprocessSpec, load_input, to_input

ROOT = Path(__file__).parents[2]
SPARE_BYTES = 100 * 2**20  # beyond what the process has once everything is imported
HANG_S = 30
LIMITS = DecodeLimits(max_bytes=2**20, max_pixels=2_000_000)


class Victim:
    """Started when it is first asked, and again after each death."""

    def __init__(self):
        self._process = None

    def ask(self, options, data=b""):
        """Return the line, or how the process ended."""
        if self._process is None:
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            self._process = subprocess.Popen(
                [sys.executable, __file__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
            )
        process = self._process
        try:
            process.stdin.write(json.dumps({**options, "bytes": len(data)}).encode() + b"\n" + data)
            readable, _, _ = select.select([process.stdout], [], [], HANG_S)
            line = process.stdout.readline().decode().strip() if readable else ""
        except BrokenPipeError:
            line = ""
        if line:
            return line
        return f"ended with {self.close()}"

    def close(self):
        """End the process; return its exit code, negative for the signal of a crash."""
        process, self._process = self._process, None
        if process is None:
            return 0
        process.stdin.close()
        try:
            return process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            process.kill()
            return f"no answer within {HANG_S} s, {process.wait()}"
        finally:
            process.stdout.close()


def _answer(options, data):
    spec = PreprocessSpec(
        resize_px=options["resize_px"], crop_px=options["crop_px"], interpolation=options["interpolation"]
    )
    try:
        row = _resized(options, spec) if "size" in options else load_input(data, spec, limits=LIMITS)
    except ImageError as error:
        return error.code
    except BaseException as error:
        return f"{type(error).__name__}: {error}".replace("\n", " ")
    return "ok" if (row.shape, row.dtype) == ((spec.crop_px, spec.crop_px, 3), np.uint8) else f"{row.shape} {row.dtype}"


def _resized(options, spec):
    height, width = options["size"]
    row = to_input(np.full((height, width, 3), options["colour"], dtype=np.uint8), spec)
    if (row != options["colour"]).any():
        raise AssertionError("a picture of one colour got another")
    return row


def main():
    address_space = resource.getrlimit(resource.RLIMIT_AS)[1]
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + SPARE_BYTES, address_space))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin.buffer:
        options = json.loads(line)
        print(_answer(options, sys.stdin.buffer.read(options["bytes"])), flush=True)  # noqa: T201 -- the protocol


if __name__ == "__main__":
    main()
