"""Take out of a TorchScript file what torch notes of its source: local paths, and the lines that the trace came from.

torch.jit.save has no option for it. Loading misses nothing: the notes serve messages of errors alone.
"""

import io
from typing import Final

import torch

_NOTES: Final = ".debug_pkl"
_VERSIONS: Final = ("version", ".data/version")  # the latter where operators are newer
_WRITTEN_AT_THE_END: Final = (*_VERSIONS, "byteorder", ".data/serialization_id")  # by torch's writer itself


def without_source_lines(archive: bytes) -> bytes:
    """Return a TorchScript file without its notes, every other record as it was and aligned as torch aligns it."""
    reader = torch._C.PyTorchFileReader(io.BytesIO(archive))
    buffer = io.BytesIO()
    writer = torch._C.PyTorchFileWriter(buffer)
    names = reader.get_all_records()
    writer.set_min_version(max(int(reader.get_record(name)) for name in names if name in _VERSIONS))
    for name in names:
        if name not in _WRITTEN_AT_THE_END and not name.endswith(_NOTES):
            record = reader.get_record(name)
            writer.write_record(name, record, len(record))
    writer.write_end_of_file()
    return buffer.getvalue()
