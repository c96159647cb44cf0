"""torch.compile for the steps of a training. Checkpoints, evaluation and export keep the plain network.

The compiled form wraps a network whose parameters stay the same tensors under the same names. It serves full batches
alone: every other size would be compiled for minutes to save seconds (EfficientNet-Lite0 on two cores: 66 s for 16
pictures, then 0.8 s a step for 1.2; 47 s more for the odd last batch).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException

from trainer.errors import ConfigError


def compiled(network: nn.Module) -> nn.Module:
    """Return what compiles itself at its first call, once for each shape: so a resumed run gets the same bits."""
    return cast("nn.Module", torch.compile(network, dynamic=False))


@contextmanager
def compiler_errors() -> Iterator[None]:
    """Raise ConfigError where compilation fails in the block, in the first forward or backward pass."""
    try:
        yield
    except TorchDynamoException as error:
        raise ConfigError(
            f"--compile: {str(error).splitlines()[0][:200]}; install a C++ compiler such as g++ and continue with "
            "--resume, or fit into another --out without --compile"
        ) from error
