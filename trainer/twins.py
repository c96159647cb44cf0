"""The twins that torch itself runs: TorchScript, and the torch.export program that succeeds it. Write them, open them.

Both carry the contract among their extra files. The server runs neither.
"""

import io
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from bundle.contract import CONTRACT_KEY, Contract, check_embedded, contract_to_json
from bundle.manifest import Twin
from bundle.repository import Bundle, file_sha256
from trainer.onnx_graph import BATCH
from trainer.similarity import Recognising
from trainer.source_lines import without_source_lines

Forward = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]  # images to logits and similarity


def write_torchscript(model: Recognising, contract: Contract, path: Path) -> Twin:
    """Trace the network and save it with the contract among its extra files."""
    side = contract.preprocess.crop_px
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and asked for all the same
        traced = torch.jit.trace(model, torch.zeros(2, side, side, 3, dtype=torch.uint8))  # type: ignore[no-untyped-call]
        buffer = io.BytesIO()  # not the path: torch ends the whole process where the disk is full
        torch.jit.save(traced, buffer, _extra_files={CONTRACT_KEY: contract_to_json(contract)})
    path.write_bytes(without_source_lines(buffer.getvalue()))
    return Twin(runtime="torchscript", file=path.name, sha256=file_sha256(path))


def write_exported_program(model: Recognising, contract: Contract, path: Path) -> Twin:
    """Export the network with torch.export, batch dynamic, and save it with the contract among its extra files."""
    side = contract.preprocess.crop_px
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export warns of its own internals
        images = torch.zeros(2, side, side, 3, dtype=torch.uint8)
        program = torch.export.export(model, (images,), dynamic_shapes=({0: BATCH},))
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # paths of this machine
        program.example_inputs = None  # would be pickled into the file
        buffer = io.BytesIO()
        torch.export.save(program, buffer, extra_files={CONTRACT_KEY: contract_to_json(contract)})
    path.write_bytes(buffer.getbuffer())
    return Twin(runtime="torch.export", file=path.name, sha256=file_sha256(path))


def open_twin(bundle: Bundle, twin: Twin) -> Forward:
    """Check a twin's hash and contract, and open it: uint8 (N, H, W, 3) -> logits (N, C), similarity (N,).

    Raises BundleError.
    """
    data = bundle.read(twin.file, twin.sha256)
    forward, embedded = (_load_torchscript if twin.runtime == "torchscript" else _load_exported_program)(data)
    check_embedded(bundle.manifest.contract, embedded, source=str(bundle.folder / twin.file))
    return forward


def _load_torchscript(data: bytes) -> tuple[Forward, str]:
    extra = {CONTRACT_KEY: ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and asked for all the same
        module = torch.jit.load(io.BytesIO(data), _extra_files=extra)  # type: ignore[no-untyped-call]
    embedded: str | bytes = extra[CONTRACT_KEY]
    return module.eval(), embedded.decode() if isinstance(embedded, bytes) else embedded


def _load_exported_program(data: bytes) -> tuple[Forward, str]:
    """Open a file that this process has just written, and no other.

    torch.export.load evaluates the file's symbolic expressions and unpickles parts of it without `weights_only`
    (torch 2.14, export/pt2_archive/_package.py): a hostile .pt2 runs code, and torch has no safe way to open one.
    """
    extra = {CONTRACT_KEY: ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export warns of its own internals
        program = torch.export.load(io.BytesIO(data), extra_files=extra)
    return program.module(), extra[CONTRACT_KEY]
