"""What the C library is told about memory."""

import ctypes
import subprocess
import sys

import pytest
from test_process import ENVIRONMENT

SCENE = """
import ctypes, sys
from serving.memory import bound_heaps

class Heaps(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks",
                                                     "fsmblks", "uordblks", "fordblks", "keepcost")]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Heaps
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
if sys.argv[1] == "bound":
    bound_heaps()
libc.free(libc.malloc(ctypes.c_size_t(20 * 2**20)))
before = libc.mallinfo2().hblkhd
libc.malloc(ctypes.c_size_t(4 * 2**20))
print(libc.mallinfo2().hblkhd - before >= 4 * 2**20)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="wants glibc 2.33 or newer")
@pytest.mark.parametrize(("how", "is_mapped"), [("bound", "True"), ("unbound", "False")])
def test_large_pieces_go_back_to_the_system_after_a_larger_one_too(how, is_mapped):
    """Left alone, glibc keeps pieces of 4 MB once one of 20 MB was freed."""
    line = [sys.executable, "-c", SCENE, how]
    done = subprocess.run(line, capture_output=True, text=True, env=ENVIRONMENT, timeout=60, check=True)
    assert done.stdout.strip() == is_mapped
