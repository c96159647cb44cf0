"""Every setting of the server, once: its default, its unit and its help text.

`serving run --help` shows this file; a field `max_batch` is the option `--max-batch` and the environment variable
CALOTYPE_MAX_BATCH.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer

from bundle.preprocess import DEFAULT_LIMITS
from bundle.runtime import CUDA_MEMORY_MB, Choice, Provider
from serving.cgroups import usable_cores, usable_memory_bytes
from serving.errors import SettingsError
from serving.versions import VersionPolicy, parse_pins, parse_shadows

_LEAST_RENEWAL_S: Final = 30.0
_LEAST_CALLS: Final = 100  # of a connection: where few may queue, the others are to hear that
_MOST_S: Final = 1_000_000.0  # gRPC takes milliseconds in 31 bits
_MOST: Final = 1_000_000_000  # of anything: gRPC counts in 31 bits too
_MOST_THREADS: Final = 1024
_MOST_PIXELS: Final = 178_956_970  # where Pillow refuses
_MOST_BYTES: Final = 2**31 - 1  # of a message, likewise


def _setting(text: str, *, low: float | None = None, high: float | None = None) -> Any:  # what typer.Option returns
    return typer.Option(help=text, min=low, max=high, case_sensitive=False, show_envvar=True)


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """All that decides how a folder of models is served."""

    address: Annotated[str, _setting("Listen on this host:port, 0: a free one; or unix:path.")] = "localhost:50051"
    http_address: Annotated[str, _setting("Serve HTTP on host:port; no host: that of --address; off: none.")] = ":8080"
    insecure: Annotated[bool, _setting("Listen beyond this machine without TLS.")] = False
    tls_cert: Annotated[Path | None, _setting("Serve with this PEM certificate chain; read again on change.")] = None
    tls_key: Annotated[Path | None, _setting("Serve with this PEM key of the certificate.")] = None
    tls_client_ca: Annotated[Path | None, _setting("Let in only clients with a certificate of this PEM.")] = None
    tokens: Annotated[Path | None, _setting("Let in only tokens of this file; see `serving token`.")] = None
    open_health: Annotated[bool, _setting("Answer health checks without a token too.")] = True
    reflection: Annotated[bool, _setting("Offer reflection, to whoever is let in.")] = True
    default_model: Annotated[str, _setting("Answer requests without a model by this one; empty: the only one.")] = ""
    pin: Annotated[str, _setting("Answer by these versions, NAME=VERSION,…; empty: by the newest good ones.")] = ""
    pins_file: Annotated[Path | None, _setting("Read pins from this file too, again at every look.")] = None
    keep: Annotated[int, _setting("Keep so many newest good versions of a model loaded.", low=1)] = 2
    shadow: Annotated[str, _setting("Try NAME=VERSION:SHARE,… on live traffic; VERSION may be newest.")] = ""
    watch_s: Annotated[float, _setting("Look for new versions every so many s; 0: never.", low=0)] = 2.0
    provider: Annotated[Provider, _setting("Run on this provider; cuda refuses to fall back.")] = "cpu"
    cuda_memory_mb: Annotated[int, _setting("Take at most so many MB of GPU memory per model.", low=256)] = (
        CUDA_MEMORY_MB
    )
    variant: Annotated[Choice, _setting("Serve this variant; auto: int8 on CPU, fp16 on CUDA, else fp32.")] = "auto"
    require_signature: Annotated[Path | None, _setting("Serve only what a public key in this PEM has signed.")] = None
    plan: Annotated[Literal["auto", "fixed"], _setting("Measure threads and batches, or take the rule.")] = "auto"
    workers: Annotated[int, _setting("Run so many processes behind one address.", low=1, high=_MOST_THREADS)] = 1
    instances: Annotated[
        int, _setting("Run so many batches at once per model; 0: as planned.", low=0, high=_MOST_THREADS)
    ] = 0
    intra_op_threads: Annotated[
        int, _setting("Use so many threads inside any run; 0: as planned.", low=0, high=_MOST_THREADS)
    ] = 0
    decode_threads: Annotated[
        int, _setting("Decode in so many threads; 0: no own ones on CPU.", low=0, high=_MOST_THREADS)
    ] = 0
    max_batch: Annotated[int, _setting("Take at most so many images at once; 0: as planned, 32 on CUDA.", low=0)] = 0
    max_wait_ms: Annotated[float, _setting("Hold back an image so many ms for company.", low=0, high=60_000)] = 0.0
    max_queue_images: Annotated[int, _setting("Queue at most so many images per model.", low=1, high=_MOST)] = 256
    max_queue_bytes: Annotated[int, _setting("Queue at most so many encoded bytes per model.", low=1)] = 256 * 2**20
    max_queue_ms: Annotated[float, _setting("Refuse what would wait longer than so many ms.", low=1)] = 1000.0
    max_images_per_request: Annotated[int, _setting("Accept at most so many images a request.", low=1)] = 64
    max_image_bytes: Annotated[int, _setting("Take at most so many bytes an image.", low=1)] = DEFAULT_LIMITS.max_bytes
    max_pixels: Annotated[
        int, _setting("Decode at most so many pixels an image, or what fits in memory.", low=1, high=_MOST_PIXELS)
    ] = DEFAULT_LIMITS.max_pixels
    max_message_bytes: Annotated[int, _setting("Accept at most so many bytes a message.", low=1, high=_MOST_BYTES)] = (
        64 * 2**20
    )
    max_concurrent_streams: Annotated[
        int, _setting("Run so many calls a connection; 0: twice what queues, 100 at least.", low=0, high=_MOST)
    ] = 0
    max_connections: Annotated[int, _setting("Take at most so many connections at each door.", low=1, high=_MOST)] = 400
    max_connection_age_s: Annotated[
        float, _setting("Renew connections after so many s; 0: never.", low=0, high=_MOST_S)
    ] = 600.0
    lame_duck_s: Annotated[float, _setting("Keep answering so many s after SIGTERM.", low=0, high=_MOST_S)] = 0.0
    drain_s: Annotated[
        float, _setting("Finish what is under way for at most so many s on exit.", low=0, high=_MOST_S)
    ] = 30.0
    log_format: Annotated[Literal["console", "json"], _setting("Write log lines in this format.")] = "console"
    log_level: Annotated[Literal["debug", "info", "warning", "error"], _setting("Log from this level on.")] = "info"

    @property
    def queue_bytes(self) -> int:
        """How many encoded bytes may wait for one model."""
        return min(self.max_queue_bytes, self.encoded_bytes)

    @property
    def encoded_bytes(self) -> int:
        """How many may wait for all models: a quarter of a worker's memory, but one message at least."""
        return max(self.own_bytes // 4, self.max_message_bytes)

    @property
    def decoders(self) -> int:
        """How many pictures a worker decodes at once, whatever the number of its models: one a core at most."""
        cores = usable_cores(processes=self.workers)
        instances = self.instances if self.provider == "cpu" else 0  # of a GPU: others decode for them
        return min(self.decode_threads or instances or cores, cores)

    @property
    def decoding_bytes(self) -> int:
        """How much memory one of them may take: all of them together half of a worker's."""
        return self.own_bytes // 2 // self.decoders

    @property
    def memory_bytes(self) -> int:
        """How much a worker may hold before it refuses what is still arriving: three quarters of its memory."""
        return self.own_bytes * 3 // 4

    @property
    def own_bytes(self) -> int:
        """How much of the memory is a worker's part."""
        return usable_memory_bytes() // self.workers

    @property
    def renewal_s(self) -> float:
        """How long what is under way may take when a version or a connection is replaced: nobody waits for an exit."""
        return max(self.drain_s, _LEAST_RENEWAL_S)

    @property
    def calls_per_connection(self) -> int:
        """How many calls of a connection run at once: by default more than may queue, see `connections`."""
        return self.max_concurrent_streams or max(_LEAST_CALLS, 2 * self.max_queue_images)

    @property
    def plans_itself(self) -> bool:
        """Whether threads and batches are to be measured: where nobody has said a number."""
        given = (self.instances, self.intra_op_threads, self.decode_threads, self.max_batch)
        return self.plan == "auto" and not any(given)

    def __post_init__(self) -> None:
        """Refuse limits under which an allowed request could never be admitted, half a TLS, and senseless versions."""
        self.policy()
        if (self.tls_cert is None) != (self.tls_key is None) or (self.tls_client_ca and not self.tls_cert):
            raise SettingsError("TLS wants both --tls-cert and --tls-key; --tls-client-ca only with them")
        pairs = (("max_images_per_request", "max_queue_images"), ("max_message_bytes", "max_queue_bytes"))
        for small, large in pairs:
            if getattr(self, small) > getattr(self, large):
                raise SettingsError(
                    f"{small} is {getattr(self, small):,}, wanted at most {large} ({getattr(self, large):,}); "
                    f"raise --{large.replace('_', '-')}"
                )

    def policy(self) -> VersionPolicy:
        """Return which versions are to be served. Raises SettingsError."""
        return VersionPolicy(
            keep=self.keep,
            pins=parse_pins(self.pin, source="--pin"),
            pins_file=self.pins_file,
            shadows=parse_shadows(self.shadow, source="--shadow"),
        )
