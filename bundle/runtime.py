"""Open a bundle's ONNX variant with onnxruntime and run it: uint8 pictures in, logits and similarities out.

Fails closed: the session runs on the provider that was asked for, or does not open at all. Threads are always set,
because onnxruntime does not see cgroup quotas.
"""

import contextlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal, NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from bundle.bound import BoundBatch
from bundle.contract import CONTRACT_KEY, IMAGES, LOGITS, SIMILARITY, check_embedded
from bundle.errors import BundleError, ProviderError
from bundle.manifest import Manifest, Precision, Variant
from bundle.repository import Bundle

Provider = Literal["auto", "cpu", "cuda"]
Choice = Literal["auto", "fp32", "fp16", "int8"]  # of a variant
_CPU: Final = "CPUExecutionProvider"
_CUDA: Final = "CUDAExecutionProvider"
Providers = Sequence[tuple[str, dict[str, str]]]  # in order of preference, with options
CUDA_MEMORY_MB: Final = 2048


class Output(NamedTuple):
    """What a model says of N pictures."""

    logits: NDArray[np.float32]  # (N, C)
    similarity: NDArray[np.float32]  # (N,), cosine to the training pictures, -1..1


def joined(outputs: Sequence[Output]) -> Output:
    """Return the outputs of several batches as one."""
    return Output(np.concatenate([one.logits for one in outputs]), np.concatenate([one.similarity for one in outputs]))


class OnnxModel:
    """One open session. `run` may be called from several threads at once; they share the weights."""

    def __init__(self, session: ort.InferenceSession, bundle: Bundle, variant: Variant) -> None:
        self._session = session
        self._bound: dict[int, BoundBatch] = {}
        self.bundle = bundle
        self.variant = variant

    @property
    def provider(self) -> Literal["cpu", "cuda"]:
        """The execution provider that really runs the graph."""
        return "cuda" if self._session.get_providers()[0] == _CUDA else "cpu"

    def run(self, images: NDArray[np.uint8]) -> Output:
        """Return logits (N, C) and similarities (N,), both float32, for uint8 (N, H, W, 3)."""
        bound = self._bound.get(len(images))
        outputs = bound.run(images) if bound else None
        return Output(*outputs) if outputs else run_session(self._session, images)

    def reserve(self, sizes: Sequence[int]) -> None:
        """Give batches of these sizes memory of their own on a GPU, and run each once; on a CPU only the latter.

        Of one size a single batch at a time has that memory: others beside it are run as any other size is.
        """
        crop_px = self.bundle.manifest.contract.preprocess.crop_px
        if self.provider == "cuda":
            self._bound = {size: BoundBatch(self._session, size, crop_px=crop_px, device="cuda") for size in sizes}
        for size in sizes:
            self.run(np.zeros((size, crop_px, crop_px, 3), dtype=np.uint8))


def open_model(
    bundle: Bundle,
    *,
    precision: Choice = "fp32",
    provider: Provider = "cpu",
    intra_op_threads: int = 1,
    spins: bool = False,
    cuda_memory_mb: int = CUDA_MEMORY_MB,
) -> OnnxModel:
    """Check a variant's hash and metadata, and open it. "auto" takes int8 on a CPU, fp16 on CUDA, else fp32.

    `spins`: on a CPU the threads of a run do not sleep between its steps, which pays where the cores would idle.
    `cuda_memory_mb` bounds what the session's arena takes of a GPU; cuDNN's own workspace and the memory of `reserve`
    (19 MB for batches of up to 64 pictures of 224 px) come on top.
    Raises BundleError for a file that is not what the manifest says, ProviderError for a missing provider.
    """
    providers = _providers(provider, cuda_memory_mb=cuda_memory_mb)
    if providers[0][0] == _CUDA:
        variant = _chosen(bundle.manifest, precision, preferred="fp16")
        try:
            return _open_on_cuda(bundle, variant, providers=providers, intra_op_threads=intra_op_threads)
        except ProviderError:
            if provider == "cuda":
                raise  # else: an onnxruntime with CUDA, on a machine without
    variant = _chosen(bundle.manifest, precision, preferred="int8")
    return _open_variant(bundle, variant, providers=[(_CPU, {})], intra_op_threads=intra_op_threads, spins=spins)


def _open_on_cuda(bundle: Bundle, variant: Variant, *, providers: Providers, intra_op_threads: int) -> OnnxModel:
    model = _open_variant(bundle, variant, providers=providers, intra_op_threads=intra_op_threads)
    if model.provider != "cuda":
        raise ProviderError(
            f"{bundle.folder / variant.file}: asked for CUDA, onnxruntime fell back to the CPU; check the driver "
            "with `nvidia-smi`, and that onnxruntime-gpu[cuda,cudnn] is installed whole, or run with --provider cpu"
        )
    return model


def _open_variant(
    bundle: Bundle, variant: Variant, *, providers: Providers, intra_op_threads: int, spins: bool = False
) -> OnnxModel:
    data = bundle.read(variant.file, variant.sha256)
    path = bundle.folder / variant.file
    session = open_session(data, path, providers=providers, intra_op_threads=intra_op_threads, spins=spins)
    contract = bundle.manifest.contract
    check_embedded(contract, session.get_modelmeta().custom_metadata_map.get(CONTRACT_KEY), source=str(path))
    _check_ends(session, path, crop_px=contract.preprocess.crop_px, class_count=len(contract.labels))
    return OnnxModel(session, bundle, variant)


def open_session(
    data: bytes, path: Path, *, intra_op_threads: int, providers: Providers = ((_CPU, {}),), spins: bool = False
) -> ort.InferenceSession:
    """Open an ONNX file's bytes; `path` names it in errors. Raises BundleError or ProviderError."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = intra_op_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only: warnings about graph initialisers are for exporters
    # One picture on two threads, Lite0: fp32 5.3 ms with spinning for 5.8 without, INT8 2.9 for 4.8. Else idle threads
    # leave the cores to decoding.
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spins)))
    options.add_session_config_entry("session.force_spinning_stop", "1")  # at the end of a run
    # Weights beside the file would be in no manifest: read from where the process happens to stand.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    wants_cuda = providers[0][0] == _CUDA
    if wants_cuda:
        _find_cuda_libraries()
    try:
        session = ort.InferenceSession(data, sess_options=options, providers=list(providers), enable_fallback=0)
    except Exception as error:  # onnxruntime raises its own family and RuntimeError; all mean an unusable file
        if wants_cuda:
            raise ProviderError(f"{path}: CUDA would not start: {error}") from error
        raise BundleError(f"{path}: onnxruntime cannot open it: {error}; export the bundle again") from error
    # onnxruntime keeps the file (1.32: InferenceSession._model_bytes) for a later change of providers, which nothing
    # here makes: 15 MB of fp32 Lite0.
    session._model_bytes = None
    return session


def run_session(session: ort.InferenceSession, images: NDArray[np.uint8]) -> Output:
    """Run an open session, as `OnnxModel.run` does."""
    return Output(*session.run([LOGITS.name, SIMILARITY.name], {IMAGES.name: images}))


def has_cuda() -> bool:
    """Say whether this onnxruntime was built for CUDA, whatever the machine has."""
    return _CUDA in ort.get_available_providers()


def _chosen(manifest: Manifest, precision: Choice, *, preferred: Precision) -> Variant:
    """Return the variant of a precision; for "auto" the preferred one where it is there, else fp32."""
    if precision != "auto":
        return manifest.variant(precision)
    return manifest.variant(preferred if any(one.precision == preferred for one in manifest.variants) else "fp32")


def _providers(provider: Provider, *, cuda_memory_mb: int) -> Providers:
    available = ort.get_available_providers()
    if provider == "cuda" and _CUDA not in available:
        raise ProviderError(
            f"asked for CUDA, this onnxruntime has only {', '.join(available)}; "
            "install calotype[serving-gpu] instead of calotype[serving], or run with --provider cpu"
        )
    if provider == "cpu" or _CUDA not in available:
        return [(_CPU, {})]
    cuda_options = {
        "cudnn_conv_algo_search": "HEURISTIC",  # EXHAUSTIVE, the default, measures anew for every batch size
        "arena_extend_strategy": "kSameAsRequested",  # not to the next power of two
        "gpu_mem_limit": str(cuda_memory_mb * 2**20),
    }
    return [(_CUDA, cuda_options), (_CPU, {})]


def _find_cuda_libraries() -> None:
    """Load CUDA and cuDNN from NVIDIA's wheels where they are installed; else the system's are found as ever."""
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it misses; the session says that too
        ort.preload_dlls()


def _check_ends(session: ort.InferenceSession, path: Path, *, crop_px: int, class_count: int) -> None:
    inputs = [(end.name, end.type, _free_batch(end.shape)) for end in session.get_inputs()]
    outputs = [(end.name, end.type, _free_batch(end.shape)) for end in session.get_outputs()]
    wanted_inputs = [(IMAGES.name, "tensor(uint8)", ["N", crop_px, crop_px, 3])]
    wanted_outputs = [(LOGITS.name, "tensor(float)", ["N", class_count]), (SIMILARITY.name, "tensor(float)", ["N"])]
    if inputs != wanted_inputs or outputs != wanted_outputs:
        raise BundleError(
            f"{path}: the graph maps {inputs} to {outputs}, wanted {wanted_inputs} to {wanted_outputs}; "
            "export the bundle again"
        )


def _free_batch(shape: list[int | str | None]) -> list[int | str | None]:
    batch = [size if isinstance(size, int) else "N" for size in shape[:1]]  # a fixed batch stays, and is refused
    return batch + shape[1:]
