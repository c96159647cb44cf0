"""Which blocks of a network suffer most from INT8: each alone in eight bits, everything else float.

Measured at the logits, where all that a block does wrong has arrived, on a few calibration pictures.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from trainer.agreement import Logits
from trainer.quantize import Quantizer, Recipe


def most_sensitive_blocks(
    quantizer: Quantizer, recipe: Recipe, *, wanted: Logits, answer: Callable[[Path], Logits], scratch: Path
) -> list[int]:
    """Return the numbers of all blocks, the one that moves the logits furthest from `wanted` (N, C) first.

    `answer` gives a file's logits of the same pictures; squared differences are averaged.
    """
    everything = range(len(quantizer.blocks))
    path = scratch / "sensitivity.onnx"
    errors = []
    for block in everything:
        quantizer.write(replace(recipe, float_blocks=tuple(other for other in everything if other != block)), path)
        errors.append(float(np.square(answer(path) - wanted).mean()))
    return sorted(everything, key=lambda block: -errors[block])
