"""Every setting of the server, once: default, unit, help text, and CALOTYPE_<NAME> in the environment."""

from dataclasses import dataclass
from typing import Annotated, Literal

import typer

from bundle.runtime import Provider


def _flag(name: str, text: str, *, low: float | None = None) -> object:
    return typer.Option(help=text, envvar=f"CALOTYPE_{name.upper()}", min=low)


def _choice(name: str, text: str) -> object:
    return typer.Option(help=text, envvar=f"CALOTYPE_{name.upper()}")


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """What `serving run` can be told."""

    address: Annotated[str, _choice("address", "Listen on host:port; port 0 takes a free one.")] = "0.0.0.0:50051"
    provider: Annotated[Provider, _choice("provider", "Run on cpu, cuda, or auto.")] = "cpu"
    precision: Annotated[Literal["fp32", "fp16", "int8"], _choice("precision", "Run this variant.")] = "fp32"
    default_model: Annotated[str, _choice("default_model", "Answer with this model where none is named.")] = ""
    instances: Annotated[int, _flag("instances", "Run so many batches at once; 0: one a core.", low=0)] = 0
    intra_op_threads: Annotated[int, _flag("intra_op_threads", "Use so many threads a batch; 0: one.", low=0)] = 0
    decode_threads: Annotated[int, _flag("decode_threads", "Decode on so many threads; 0: one a core.", low=0)] = 0
    max_batch: Annotated[int, _flag("max_batch", "Batch at most so many pictures.", low=1)] = 16
    max_wait_ms: Annotated[float, _flag("max_wait_ms", "Hold a batch back for company, in ms.", low=0)] = 0.0
    max_queue_images: Annotated[int, _flag("max_queue_images", "Queue at most so many pictures.", low=1)] = 256
    max_queue_bytes: Annotated[int, _flag("max_queue_bytes", "Queue at most so many bytes.", low=1)] = 256 * 2**20
    max_images_per_request: Annotated[int, _flag("max_images_per_request", "Take so many pictures a call.", low=1)] = 64
    max_image_bytes: Annotated[int, _flag("max_image_bytes", "Take so many bytes a picture.", low=1)] = 20 * 2**20
    max_pixels: Annotated[int, _flag("max_pixels", "Take so many pixels a picture.", low=1)] = 64_000_000
    max_message_bytes: Annotated[int, _flag("max_message_bytes", "Take so many bytes a call.", low=1024)] = 64 * 2**20
    lame_duck_s: Annotated[float, _flag("lame_duck_s", "Keep answering so long after SIGTERM, in s.", low=0)] = 0.0
    drain_s: Annotated[float, _flag("drain_s", "Allow so long to finish what is queued, in s.", low=0)] = 30.0
    log_format: Annotated[Literal["console", "json"], _choice("log_format", "Log for a person or a machine.")] = (
        "console"
    )
    log_level: Annotated[Literal["debug", "info", "warning", "error"], _choice("log_level", "Log from this level.")] = (
        "info"
    )
