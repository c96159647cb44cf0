"""The expected errors of the trainer.

CalotypeError (bundle.errors)
└── TrainerError              anything a person can act on
    ├── DataError             the folder of pictures cannot be trained on
    ├── ConfigError           options that contradict each other or the backbone
    ├── WeightsError          pretrained weights that are not at hand
    ├── CheckpointError       a run folder that cannot be read or resumed
    ├── ExportError           a network that cannot be written as asked
    ├── QuantizationError     a graph that cannot be written in INT8 or float16; fp32 is exported all the same
    ├── ParityError           an export whose runtimes disagree; nothing was written
    ├── PeerError             another process of a training on several failed
    └── Interrupted           Ctrl-C or SIGTERM while training; the last checkpoint is kept
"""

from bundle.errors import CalotypeError


class TrainerError(CalotypeError):
    """Any expected error of the trainer."""


class DataError(TrainerError):
    """A data folder that cannot be trained or evaluated on."""


class ConfigError(TrainerError):
    """Options that contradict each other."""


class WeightsError(TrainerError):
    """Pretrained weights that cannot be had."""


class CheckpointError(TrainerError):
    """A run or checkpoint that cannot be read."""


class ExportError(TrainerError):
    """A network that cannot be written in the format that was asked for."""


class QuantizationError(TrainerError):
    """A graph that cannot be written with smaller numbers."""


class ParityError(TrainerError):
    """Runtimes that disagree on real pictures."""


class PeerError(TrainerError):
    """Another process of the same training failed, and says why."""


class Interrupted(TrainerError):  # noqa: N818 -- an interruption is what happened, not an error of anyone
    """Ctrl-C or SIGTERM: the last checkpoint is kept."""
