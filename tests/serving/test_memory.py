"""What the C library is told about memory."""

import asyncio
import ctypes
import gc
import os
import subprocess
import sys
import weakref
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
import tiny_bundle
from running import LIMIT_S, Running, plain_channel
from test_process import ENVIRONMENT

from protos import classifier_pb2 as pb
from protos import classifier_pb2_grpc
from serving.memory import keep_returning_memory, private_bytes, return_memory

HEAPS = """
import ctypes, gc, sys

class Heaps(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks",
                                                     "fsmblks", "uordblks", "fordblks", "keepcost")]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Heaps
"""

SCENE = """
from serving.memory import bound_heaps

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
    line = [sys.executable, "-c", HEAPS + SCENE, how]
    done = subprocess.run(line, capture_output=True, text=True, env=ENVIRONMENT, timeout=60, check=True)
    assert done.stdout.strip() == is_mapped


REFUSED = """
import asyncio
from contextlib import suppress
from pathlib import Path

import grpc
import tiny_bundle
from protos import classifier_pb2 as pb, classifier_pb2_grpc
from running import Running

async def refused_streams(address, request, *, times):
    async def endless():
        while True:
            yield request

    async with grpc.aio.insecure_channel(address) as channel:
        for _ in range(times):
            with suppress(grpc.aio.AioRpcError):
                await classifier_pb2_grpc.ClassifierStub(channel).ClassifyStream(endless()).read()

def used_mb():
    gc.collect()
    heaps = libc.mallinfo2()
    return (heaps.uordblks + heaps.hblkhd) / 1e6

folder = Path(sys.argv[1])
tiny_bundle.write(folder)
picture = tiny_bundle.picture("red", size=(300, 300), file_format="BMP")
with Running(folder) as server:
    request = pb.ClassifyRequest(images=[picture], model="unknown")
    asyncio.run(refused_streams(server.address, request, times=10))
    before = used_mb()
    asyncio.run(refused_streams(server.address, request, times=60))
print(used_mb() - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="wants glibc 2.33 or newer")
def test_refused_streams_leave_no_memory(tmp_path):
    """The message that is on its way when a stream is ended is freed: 0.3 MB, 60 times."""
    folders = (Path(__file__).parents[2], Path(__file__).parent)
    environment = {**ENVIRONMENT, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    line = [sys.executable, "-c", HEAPS + REFUSED, str(tmp_path)]
    done = subprocess.run(line, capture_output=True, text=True, env=environment, timeout=120, check=True)
    assert float(done.stdout.splitlines()[-1]) < 4  # the lines before are the log's


FREEZE = """
import gc, weakref
from serving.memory import freeze_heap

class Node: pass

freeze_heap()
node = Node()
node.itself, seen = node, weakref.ref(node)
del node
searched = len(gc.get_objects())
gc.collect()
print(gc.get_freeze_count() > 10 * searched, seen() is None)
"""


def test_what_lives_at_the_start_is_never_searched_again_and_what_comes_later_is():
    """The modules are nearly everything; a cycle made after them is still found."""
    done = subprocess.run(
        [sys.executable, "-c", FREEZE], capture_output=True, text=True, env=ENVIRONMENT, timeout=60, check=True
    )
    assert done.stdout.split() == ["True", "True"]


@contextmanager
def no_cycles(size_bytes):
    """What was done meanwhile held no more than this until cycles were looked for."""
    gc.collect()
    gc.disable()
    try:
        yield
        return_memory()
        held = private_bytes()
    finally:
        gc.enable()
    gc.collect()
    return_memory()
    assert held - private_bytes() < size_bytes


def test_what_is_refused_leaves_memory_at_once(models):
    """Messages that say nothing, and more pictures than a request may have."""
    size, calls = 8 * 2**20, 12
    picture = tiny_bundle.picture("red").ljust(size // 4, b"\0")
    garbage, too_much = bytes(size), pb.ClassifyRequest(images=[picture] * 3).SerializeToString()
    settings = {"max_message_bytes": size, "max_queue_bytes": size, "max_images_per_request": 2}
    with (
        Running(models, **settings) as server,
        plain_channel(server.address) as channel,
        no_cycles(2 * size),
    ):
        call = channel.unary_unary("/classifier.v1.Classifier/Classify", None, None)
        for message in (garbage, too_much) * (calls // 2):
            with pytest.raises(grpc.RpcError) as caught:
                call(message, timeout=LIMIT_S)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("decode_threads", [0, 1])
def test_bad_pictures_leave_memory_at_once(models, decode_threads):
    """And what was in a batch with them."""
    size, calls = 4 * 2**20, 12
    good = tiny_bundle.picture("red").ljust(size, b"\0")
    settings = {"max_message_bytes": 3 * size, "decode_threads": decode_threads}
    with (
        Running(models, **settings) as server,
        plain_channel(server.address) as channel,
        no_cycles(3 * size),
    ):
        stub = classifier_pb2_grpc.ClassifierStub(channel)
        for _ in range(calls):
            bad, found = stub.Classify(pb.ClassifyRequest(images=[bytes(size), good]), timeout=LIMIT_S).results
            assert (bad.error.code, found.predictions[0].label) == (pb.ImageError.NOT_AN_IMAGE, "red")


def test_cycles_are_looked_for_now_and_then(monkeypatch):
    """Python itself looks when there are many objects, of whatever size."""

    class Node:
        pass

    async def main():
        node = Node()
        node.itself, seen = node, weakref.ref(node)
        del node
        returning = asyncio.create_task(keep_returning_memory())
        async with asyncio.timeout(LIMIT_S):
            while seen():  # noqa: ASYNC110 -- nobody tells of it
                await asyncio.sleep(0.001)
        returning.cancel()

    monkeypatch.setattr("serving.memory._EVERY_S", 0.01)
    gc.disable()
    try:
        asyncio.run(main())
    finally:
        gc.enable()


BEGUN = """
from pathlib import Path

from serving import process
from serving.settings import ServerSettings

libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]

def run(main):
    main.close()
    libc.free(libc.malloc(ctypes.c_size_t(20 * 2**20)))
    before = libc.mallinfo2().hblkhd
    libc.malloc(ctypes.c_size_t(4 * 2**20))
    print(gc.get_freeze_count() > 0, libc.mallinfo2().hblkhd - before >= 4 * 2**20)

process.uvloop.run = run
process.run(Path("models"), ServerSettings())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="wants glibc 2.33 or newer")
def test_a_server_begins_with_its_heaps_bound_and_its_modules_out_of_the_search():
    """Before its event loop runs."""
    line = [sys.executable, "-c", HEAPS + BEGUN]
    done = subprocess.run(line, capture_output=True, text=True, env=ENVIRONMENT, timeout=60, check=True)
    assert done.stdout.split() == ["True", "True"]
