"""Write the network as one clean ONNX file: standard operators, one dynamic axis, the contract inside, nothing else.

Equal weights and contract give equal bytes, in any process and folder. Proves nothing: that is `proof`.
"""

import copy
import warnings
from pathlib import Path
from typing import Final

import onnx
import torch
from torch import Tensor, nn

from bundle.contract import CONTRACT_KEY, IMAGES, LOGITS, SIMILARITY, Contract, contract_to_json
from trainer.errors import ExportError
from trainer.similarity import Recognising

OPSET: Final = 18
MAX_IR: Final = 10
ONNX_FILE: Final = "model.onnx"
WEIGHTED: Final = ("Conv", "Gemm", "MatMul")  # layers with weights, as ONNX names them
MAX_WEIGHT_BYTES: Final = 2**31 - 2**25  # protobuf ends at 2 GiB; 32 MiB are left for the graph itself
BATCH: Final = torch.export.Dim("batch", min=1, max=4096)


class Planar(nn.Module):
    """The same network over contiguous planes, and with contiguous weights.

    Over the channels_last view that `normalise` returns, and behind channels_last weights as training has them, torch
    writes each adaptive pooling to 1x1 as `as_strided`, which becomes Shape, Range and Gather chains in ONNX (27 nodes
    of 184 in MobileNetV3-Small).
    """

    def __init__(self, model: Recognising) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).to(memory_format=torch.contiguous_format)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (N, C) and similarity (N,) for uint8 (N, H, W, 3)."""
        return self.model.answer(self.model.model.normalise(images).contiguous())


def write_onnx(model: Recognising, contract: Contract, path: Path) -> None:
    """Write one ONNX file, opset 18, dynamic batch, with the contract in its metadata. Raises ExportError."""
    _check_size(model)
    side = contract.preprocess.crop_px
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own internals
        program = torch.onnx.export(
            Planar(model).eval(),
            (torch.zeros(2, side, side, 3, dtype=torch.uint8),),
            dynamo=True,
            opset_version=OPSET,
            input_names=[IMAGES.name],
            output_names=[LOGITS.name, SIMILARITY.name],
            dynamic_shapes=({0: BATCH},),
            external_data=False,
            verbose=False,
            optimize=True,  # folds constants, and batch normalisation into convolutions
        )
    assert program is not None
    proto = program.model_proto
    strip_comments(proto)
    save(proto, contract, path)


def save(proto: onnx.ModelProto, contract: Contract, path: Path) -> None:
    """Write a graph with the contract as its only metadata, and let onnx check it in full."""
    proto.ir_version = min(proto.ir_version, MAX_IR)
    del proto.metadata_props[:]
    proto.metadata_props.add(key=CONTRACT_KEY, value=contract_to_json(contract))
    path.write_bytes(proto.SerializeToString(deterministic=True))
    onnx.checker.check_model(path, full_check=True)


def strip_comments(proto: onnx.ModelProto) -> None:
    """Remove what the exporter notes down beside the graph: stack traces with local paths, class names, doc strings."""
    graph = proto.graph
    proto.doc_string = graph.doc_string = ""
    del graph.metadata_props[:]
    parts: list[onnx.NodeProto | onnx.TensorProto | onnx.ValueInfoProto] = [*graph.node, *graph.initializer]
    parts += [*graph.input, *graph.output, *graph.value_info]
    for part in parts:
        part.doc_string = ""
        del part.metadata_props[:]


def bank_nodes(model: onnx.ModelProto) -> set[str]:
    """Return the names of the nodes that make the similarity alone."""
    return _makers(model, SIMILARITY.name) - _makers(model, LOGITS.name)


def _makers(model: onnx.ModelProto, output: str) -> set[str]:
    """Return the names of all nodes that an output depends on."""
    wanted, names = {output}, set()
    for node in reversed(model.graph.node):
        if wanted & set(node.output):
            wanted |= set(node.input)
            names.add(node.name)
    return names


def _check_size(model: nn.Module) -> None:
    found = sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))
    if found > MAX_WEIGHT_BYTES:
        raise ExportError(
            f"the network's weights are {found:,} bytes, one ONNX file holds at most {MAX_WEIGHT_BYTES:,}; "
            "choose a smaller --backbone, or export with --torchscript alone"
        )
