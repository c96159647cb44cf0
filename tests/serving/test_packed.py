"""Compressed messages: known from all others, unpacked to what they were, and never beyond the limit."""

import asyncio
import gc
import gzip
import threading
import tracemalloc
import zlib
from contextlib import suppress

import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from hypothesis import given
from hypothesis import strategies as st
from one_thread import most_at_once

from protos import classifier_pb2, open_inference_pb2
from serving import packed
from serving.errors import InvalidRequestError, MessageTooLargeError
from serving.packed import Unpacker, is_packed
from serving.waking import OneThread

LIMIT = 1000
FILES = (classifier_pb2, open_inference_pb2, health_pb2, reflection_pb2)
REQUESTS = [
    method.input_type
    for file in FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]


def unpack(message, max_bytes=LIMIT):
    async def scene():
        return await Unpacker(max_bytes).unpack(message)

    return asyncio.run(scene())


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
@given(message=st.binary(max_size=LIMIT))
def test_a_message_is_what_it_was(pack, message):
    """Up to the limit."""
    assert is_packed(pack(message))
    assert unpack(pack(message)) == message


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
def test_a_bomb_is_not_unpacked(pack):
    """One byte more than the limit is too much."""
    with pytest.raises(MessageTooLargeError, match="more than 1,000 bytes"):
        unpack(pack(bytes(LIMIT + 1)))


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
def test_a_bomb_takes_little_more_memory_than_the_limit(pack):
    """Whatever it would become."""
    message, limit = pack(bytes(50 * 2**20)), 2**20
    tracemalloc.start()
    try:
        with pytest.raises(MessageTooLargeError):
            unpack(message, limit)
        assert tracemalloc.get_traced_memory()[1] < 3 * limit
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
@given(data=st.data())
def test_a_cut_message_is_an_invalid_request(pack, data):
    """Anywhere."""
    message = pack(b"a picture" * 20)
    with pytest.raises(InvalidRequestError):
        unpack(message[: data.draw(st.integers(1, len(message) - 1))])


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
def test_a_damaged_message_is_an_invalid_request(pack):
    """The last byte belongs to gzip's length, and to deflate's checksum."""
    message = bytearray(pack(b"a picture" * 20))
    message[-1] ^= 1
    with pytest.raises(InvalidRequestError):
        unpack(bytes(message))


def test_no_request_begins_like_a_compressed_one():
    """A first byte of 0x78 would be field 15; 0x1f is none of protobuf."""
    assert len(REQUESTS) > 15
    for request in REQUESTS:
        assert 15 not in request.fields_by_number, request.full_name


def test_messages_are_unpacked_one_at_a_time(monkeypatch):
    """Each may be as large as a message can be."""
    both, met = threading.Barrier(2), []

    def meet(message, max_bytes):
        with suppress(threading.BrokenBarrierError):
            both.wait(0.2)
            met.append(message)
        return message

    monkeypatch.setattr(packed, "unpack", meet)

    async def scene():
        unpacker = Unpacker(LIMIT)
        return await asyncio.gather(unpacker.unpack(b"1"), unpacker.unpack(b"2"))

    assert asyncio.run(scene()) == [b"1", b"2"]
    assert not met


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
def test_nothing_after_the_end_is_lost_in_silence(pack):
    """A second part is legal in gzip; no gRPC library writes one."""
    with pytest.raises(InvalidRequestError):
        unpack(pack(b"one") + pack(b"two"))


def test_a_message_whose_caller_has_gone_is_unpacked_alone_too(monkeypatch):
    """Its thread goes on: callers who come and go would fill the pool."""

    def ask():
        unpacker = Unpacker(LIMIT)
        return lambda number: unpacker.unpack(bytes([number]))

    assert most_at_once(monkeypatch, "serving.packed.unpack", ask) == [1, 1]


def test_an_error_that_nobody_waits_for_any_more_is_no_news():
    """A bomb of a caller who has gone."""
    may_fail, unheard = threading.Event(), []

    def fail():
        may_fail.wait(20)
        raise MessageTooLargeError("found more than 1,000 bytes")

    async def scene():
        asyncio.get_running_loop().set_exception_handler(lambda _, event: unheard.append(event["message"]))
        call = asyncio.create_task(OneThread().run(fail))
        await asyncio.wait({call}, timeout=0.05)
        call.cancel()
        await asyncio.wait({call}, timeout=0.05)
        may_fail.set()
        with pytest.raises(asyncio.CancelledError):
            await call
        del call
        gc.collect()  # where Python tells of errors that nobody asked for

    asyncio.run(scene())
    assert unheard == []
