"""From a model's folder to a model that answers: checked, proved, planned, warmed, started."""

from dataclasses import replace
from pathlib import Path

import structlog

from bundle import golden
from bundle.contract import Contract
from bundle.errors import BundleError
from bundle.preprocess import DecodeLimits
from bundle.repository import Bundle, load_bundle
from bundle.runtime import OnnxModel, has_cuda, open_model
from serving.admission import BatcherLimits
from serving.batcher import Batcher
from serving.cgroups import memory_limit_bytes, usable_cores
from serving.classifier import PictureBatcher, ServedModel
from serving.metrics import Metrics, ModelMetrics
from serving.occupancy import Occupancy
from serving.plan import Plan, make_plan
from serving.plan_search import Planner
from serving.settings import ServerSettings
from serving.steps import PictureSteps

log = structlog.get_logger(__name__)


def load_model(
    folder: Path,
    settings: ServerSettings,
    *,
    metrics: Metrics,
    planner: Planner | None = None,
    occupancy: Occupancy | None = None,
) -> ServedModel:
    """Open a model folder, replay its golden pictures, warm every batch size, and start its threads.

    A planner measures how many threads do what where the settings leave that open; without one, the rule decides.
    `occupancy` is that of all models of this process.
    Raises BundleError where the folder or an answer is not what was exported or not signed by who it must be,
    ProviderError for a missing provider.
    """
    bundle = _load_bundle(folder, settings)
    _check_place(folder, bundle.manifest.contract)
    proved = golden.open_proved(
        bundle,
        precision=settings.variant,
        provider=settings.provider,
        intra_op_threads=settings.intra_op_threads or 1,
        cuda_memory_mb=settings.cuda_memory_mb,
    )
    model = proved.model
    if proved.refused:
        log.warning("variant refused, serving fp32", reason=proved.refused)
    if settings.provider == "auto" and model.provider == "cpu" and has_cuda():
        log.warning("CUDA would not start, serving on the CPU; its reason stands above, from onnxruntime")
    cores = usable_cores()
    plan = make_plan(
        cores=cores,
        provider=model.provider,
        precision=model.variant.precision,
        instances=settings.instances,
        intra_op_threads=settings.intra_op_threads,
        decode_threads=settings.decode_threads,
        max_batch=settings.max_batch,
    )
    if planner is not None and settings.plans_itself and model.provider == "cpu":
        plan = planner.plan(plan, model, cores=cores)
        if plan.intra_op_threads != 1:
            model = _reopened(model, intra_op_threads=plan.intra_op_threads)
    contract = model.bundle.manifest.contract
    model_metrics = metrics.model(contract.name, contract.version)
    if settings.workers > 1 or not _has_room_twice(model):  # other processes use the cores too
        plan = replace(plan, lone_threads=plan.intra_op_threads)
    lone = model if plan.lone_threads == plan.intra_op_threads else _reopened(model, intra_op_threads=plan.lone_threads)
    batcher = _batcher(model, lone, settings, plan=plan, metrics=model_metrics, occupancy=occupancy)
    served = ServedModel(model, batcher, metrics=model_metrics)
    served.start()
    log.info(
        "model ready",
        model=contract.name,
        version=contract.version,
        provider=served.provider,
        precision=served.precision,
        instances=plan.instances,
        intra_op_threads=plan.intra_op_threads,
        lone_threads=plan.lone_threads,
        decode_threads=plan.decode_threads,
        max_batch=plan.max_batch,
        golden_difference=f"{proved.difference:.1e}",
    )
    return served


def _reopened(model: OnnxModel, *, intra_op_threads: int) -> OnnxModel:
    """Open the same variant on the CPU with other threads; what serves is what was proved."""
    opened = open_model(model.bundle, precision=model.variant.precision, intra_op_threads=intra_op_threads)
    golden.replay(opened)
    return opened


def _has_room_twice(model: OnnxModel) -> bool:
    """Say whether a second copy of the weights is nothing beside the memory limit: at most a thirty-second of it."""
    limit = memory_limit_bytes()
    return limit is None or (model.bundle.folder / model.variant.file).stat().st_size <= limit // 32


def _load_bundle(folder: Path, settings: ServerSettings) -> Bundle:
    if settings.require_signature is None:
        return load_bundle(folder)
    from bundle.signature import verify  # cryptography, only where it is asked for

    return verify(folder, settings.require_signature)


def _check_place(folder: Path, contract: Contract) -> None:
    """Refuse a copy under another name: answers and metrics would name a model or version that is not this one."""
    if (folder.parent.name, folder.name) != (contract.name, str(contract.version)):
        raise BundleError(
            f"{folder}: the manifest says {contract.name}/{contract.version}; give the folder that name back, and "
            "choose the version that answers with --pin"
        )


def batch_sizes(max_batch: int) -> tuple[int, ...]:
    """Return the sizes that are warmed and run: the powers of two below max_batch, and max_batch."""
    return (*(2**power for power in range(max_batch.bit_length()) if 2**power < max_batch), max_batch)


def _batcher(
    model: OnnxModel,
    lone: OnnxModel,
    settings: ServerSettings,
    *,
    plan: Plan,
    metrics: ModelMetrics,
    occupancy: Occupancy | None,
) -> PictureBatcher:
    """Warm every batch size; return the batcher, not yet started."""
    sizes = batch_sizes(plan.max_batch)
    model.reserve(sizes)
    lone.reserve(sizes[:1])
    limits = BatcherLimits(
        instances=plan.instances,
        prepare_threads=plan.decode_threads,
        batch_sizes=sizes,
        max_wait_ms=settings.max_wait_ms,
        max_queue_items=settings.max_queue_images,
        max_queue_bytes=settings.queue_bytes,
        max_queue_ms=settings.max_queue_ms,
    )
    decode_limits = DecodeLimits(max_bytes=settings.max_image_bytes, max_pixels=settings.max_pixels)
    steps = PictureSteps(model, decode_limits, metrics=metrics, lone=lone)
    return Batcher(
        steps.prepare, steps.run, limits=limits, observer=metrics, run_lone=steps.run_lone, occupancy=occupancy
    )
