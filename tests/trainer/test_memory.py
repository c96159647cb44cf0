"""Memory that is freed and asked for again costs the kernel nothing."""

import ctypes
import subprocess
import sys

import pytest

CODE = """
import resource
from trainer.memory import keep_freed_memory

def faults() -> int:
    bytearray(40 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

keep_freed_memory()
before = faults()
print(faults() - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="no glibc")
def test_a_large_block_is_reused() -> None:
    """Each new page would be a fault: 10,240 of them."""
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100
