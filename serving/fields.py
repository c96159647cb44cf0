"""How many fields a message has, told from its bytes before any of it becomes an object.

An empty field is two bytes on the wire, and up to a hundred in memory: 63 MB of nothing but empty tensors took 3 GB and
held the loop for 21 s, of which gRPC's own compression makes 64 KB.
"""

from typing import Final

import numpy as np
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor

_VARINT, _EIGHT_BYTES, _SIZED, _GROUP, _GROUP_END, _FOUR_BYTES = range(6)  # wire types
_MAX_VARINT_BYTES: Final = 10
_LARGE: Final = (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64, FieldDescriptor.CPPTYPE_DOUBLE)
_SMALL: Final = (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_UINT32)
_SMALL_A_FIELD: Final = 1024


def input_type(method: str) -> Descriptor | None:
    """Return what a method such as "/classifier.v1.Classifier/Classify" takes; None where no file tells of it."""
    service, _, name = method.removeprefix("/").partition("/")
    try:
        return descriptor_pool.Default().FindServiceByName(service).methods_by_name[name].input_type
    except KeyError:
        return None


def count_fields(message: bytes, kind: Descriptor, *, most: int) -> int:
    """Return how many fields there are, in messages inside it too; anything beyond `most` once there are more.

    Numbers of eight bytes that come packed count one a byte: that many they may be. Of whole ones of four bytes 1,024
    count as one, as each is looked at afterwards: 63 MB of them held the loop for 1.5 s. The count ends where the bytes
    are no message any more; the decoder refuses them there.
    """
    count, spans, view = 0, [(0, len(message), kind)], memoryview(message)  # a picture is not copied
    while spans:
        at, end, kind = spans.pop()
        while at < end:
            count += 1
            tag, at = _varint(message, at)
            wire = tag & 7
            if wire == _SIZED:
                size, at = _varint(message, at)
                field = kind.fields_by_number.get(tag >> 3)
                if field is not None and field.message_type is not None:
                    spans.append((at, min(at + size, end), field.message_type))
                elif field is not None:
                    count += _packed_fields(view[at : at + size], field.cpp_type)
                at += size
            elif wire == _VARINT:
                _, at = _varint(message, at)
            elif wire in (_EIGHT_BYTES, _FOUR_BYTES):
                at += 8 if wire == _EIGHT_BYTES else 4
            elif wire not in (_GROUP, _GROUP_END):
                return count
            if count > most:
                return count
    return count


def _packed_fields(packed: memoryview, cpp_type: int) -> int:
    """Return for how many fields these count, where they are numbers; each ends with a byte below 128."""
    if cpp_type in _SMALL:
        return int(np.count_nonzero(np.frombuffer(packed, np.uint8) < 0x80)) // _SMALL_A_FIELD
    return len(packed) if cpp_type in _LARGE else 0


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Return the number there, and where it ends; the message's end where it has none."""
    value = 0
    for place, byte in enumerate(message[at : at + _MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return value, at + place + 1
    return value, len(message)
