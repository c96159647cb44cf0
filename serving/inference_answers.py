"""What a request of the Open Inference Protocol V2 is answered with: the outputs that it asks for, as raw tensors."""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from protos import open_inference_pb2 as pb
from serving.classifier import ServedModel
from serving.dispatcher import Answers
from serving.steps import Verdict
from serving.tensors import UNKNOWN_NAME, join


def answer_message(answers: Answers, asked: Mapping[str, int], *, request_id: str) -> pb.ModelInferResponse:
    """Return the response with the outputs of `tensors.asked_outputs`, in their order; all `answers` are verdicts."""
    verdicts = [outcome for outcome in answers.outcomes if isinstance(outcome, Verdict)]
    outputs = [_output(name, verdicts, model=answers.model, label_count=count) for name, count in asked.items()]
    return pb.ModelInferResponse(
        model_name=answers.model.contract.name,
        model_version=str(answers.model.contract.version),
        id=request_id,
        outputs=[tensor for tensor, _ in outputs],
        raw_output_contents=[raw for _, raw in outputs],
    )


def _output(
    name: str, verdicts: Sequence[Verdict], *, model: ServedModel, label_count: int
) -> tuple[pb.ModelInferResponse.InferOutputTensor, bytes]:
    """Return an output tensor without its contents, and these."""
    tensor = partial(pb.ModelInferResponse.InferOutputTensor, name=name)
    if name == UNKNOWN_NAME:
        return tensor(datatype="BOOL", shape=(len(verdicts), 1)), bytes(one.unknown for one in verdicts)
    if label_count:
        ranked = [model.rank(one.scores, top_k=label_count) for one in verdicts]
        elements = [f"{one.score:.6f}:{one.index}:{one.label}".encode() for row in ranked for one in row]
        return tensor(datatype="BYTES", shape=(len(verdicts), len(ranked[0]))), join(elements)
    values = np.stack([one.scores for one in verdicts]).astype("<f4")  # (N, C)
    return tensor(datatype="FP32", shape=values.shape), values.tobytes()
