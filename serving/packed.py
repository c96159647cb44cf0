"""Messages that come compressed, as gRPC's gzip or deflate: unpacked here, one at a time and within a limit.

The library would unpack those of all calls at once: 400 messages of 60 KB that say 60 MB each took 6 GB. Told not to,
it hands them over as they came, and does not tell which they are. No message of a method here begins like one: the
first byte of gzip is none that protobuf knows (wire type 7), that of deflate is the number of a field 15.
"""

import zlib
from typing import Final

from serving.errors import InvalidRequestError, MessageTooLargeError
from serving.waking import OneThread

LEAVE_PACKED: Final = ("grpc.per_message_decompression", 0)  # grpc_types.h
_WINDOW_BITS: Final = {b"\x1f": 31, b"\x78": 15}  # for zlib, by the first byte of gzip (RFC 1952), deflate (RFC 1950)


def is_packed(message: bytes) -> bool:
    """Whether the message came compressed."""
    return message[:1] in _WINDOW_BITS


class Unpacker:
    """Unpacks messages of up to `max_bytes` in a thread, each in its turn. Used from one event loop."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._thread = OneThread()

    async def unpack(self, message: bytes) -> bytes:
        """Return what was packed. Raises InvalidRequestError, MessageTooLargeError."""
        return await self._thread.run(unpack, message, self._max_bytes)


def unpack(message: bytes, max_bytes: int) -> bytes:
    """Return what was packed, if it is no more than that. Raises InvalidRequestError, MessageTooLargeError."""
    unpacking = zlib.decompressobj(_WINDOW_BITS[message[:1]])
    try:
        unpacked = unpacking.decompress(message, max_bytes + 1)  # 0 would be no limit
    except zlib.error as error:
        raise InvalidRequestError("found bytes that are no message of this method") from error
    if len(unpacked) > max_bytes:
        raise MessageTooLargeError(f"the message unpacks to more than {max_bytes:,} bytes; send less at once")
    if not unpacking.eof or unpacking.unused_data:
        raise InvalidRequestError("found a compressed message without its end, or more after it")
    return unpacked
