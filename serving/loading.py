"""From a model's folder to a model that answers: checked, proved, planned, warmed, started.

Called by the catalogue, off the event loop. What happens to the model afterwards is the catalogue's business.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
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
from serving.cgroups import usable_cores
from serving.classifier import PictureBatcher, ServedModel
from serving.metrics import Metrics
from serving.model_metrics import ModelMetrics
from serving.occupancy import Occupancy
from serving.plan import Plan, make_plan
from serving.plan_search import Planner
from serving.scheduling import give_way, own_cores
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
    """Open a model folder, replay its golden pictures, warm the sizes of runs, and start its threads.

    A planner measures how many threads do what where the settings leave that open; without one, the rule decides.
    `occupancy` is that of all models of this process.
    Raises BundleError where the folder or an answer is not what was exported, or not signed by who it must be, and
    ProviderError for a missing provider.
    """
    bundle = _load_bundle(folder, settings)
    _check_place(folder, bundle.manifest.contract)
    proved = _open_proved(bundle, settings)
    occupancy = occupancy or Occupancy(decoders=settings.decoders, encoded_bytes=settings.encoded_bytes)
    model, plan = _planned(proved.model, settings, planner=planner, occupancy=occupancy)
    lone = _lone(model, plan, own_bytes=settings.own_bytes)
    contract = model.bundle.manifest.contract
    model_metrics = ModelMetrics(metrics, contract.name, version=contract.version)
    batcher = _batcher(model, lone, settings=settings, plan=plan, metrics=model_metrics, occupancy=occupancy)
    served = ServedModel(model, batcher, metrics=model_metrics)
    served.start()
    _tell(served, plan, lone_threads=plan.lone_threads if lone else plan.intra_op_threads, difference=proved.difference)
    return served


def _tell(served: ServedModel, plan: Plan, *, lone_threads: int, difference: float) -> None:
    log.info(
        "model ready",
        model=served.contract.name,
        version=served.contract.version,
        provider=served.provider,
        precision=served.precision,
        instances=plan.instances,
        intra_op_threads=plan.intra_op_threads,
        lone_threads=lone_threads,
        decode_threads=plan.decode_threads,
        max_batch=plan.max_batch,
        max_run=plan.max_run,
        golden_difference=f"{difference:.1e}",
    )


def _open_proved(bundle: Bundle, settings: ServerSettings) -> golden.Proved:
    """Open the variant that is asked for, on the provider that is asked for; tell where it became another."""
    proved = golden.open_proved(
        bundle,
        precision=settings.variant,
        provider=settings.provider,
        intra_op_threads=settings.intra_op_threads or 1,
        cuda_memory_mb=settings.cuda_memory_mb,
    )
    if proved.refused:
        log.warning("variant refused, serving fp32", reason=proved.refused)
    if settings.provider == "auto" and proved.model.provider == "cpu" and has_cuda():
        log.warning("CUDA would not start, serving on the CPU; its reason stands above, from onnxruntime")
    return proved


def _planned(
    model: OnnxModel, settings: ServerSettings, *, planner: Planner | None, occupancy: Occupancy
) -> tuple[OnnxModel, Plan]:
    """Return the plan, and the model opened as it says."""
    cores = usable_cores(processes=settings.workers)
    plan = make_plan(
        cores=cores,
        provider=model.provider,
        instances=settings.instances,
        intra_op_threads=settings.intra_op_threads,
        decode_threads=settings.decode_threads,
        max_batch=settings.max_batch,
    )
    if planner is None or not settings.plans_itself or model.provider != "cpu":
        return model, plan
    plan = planner.plan(plan, model, cores=cores, decoding=occupancy.decoding)
    return (model if plan.intra_op_threads == 1 else _reopened(model, plan.intra_op_threads)), plan


def _lone(model: OnnxModel, plan: Plan, *, own_bytes: int) -> OnnxModel | None:
    """Open what runs a picture that has the cores to itself; None where that is no other, or is not to be had."""
    if plan.lone_threads == plan.intra_op_threads or not _has_room_twice(model, own_bytes):
        return None
    try:
        return _reopened(model, plan.lone_threads, spins=True)
    except BundleError as error:
        log.warning("a lone picture gets no more threads: with them it is answered otherwise", reason=str(error))
        return None


def _reopened(model: OnnxModel, intra_op_threads: int, *, spins: bool = False) -> OnnxModel:
    """Open the same variant on the CPU with other threads, which give way; what serves is what was proved."""
    opening = partial(open_model, model.bundle, precision=model.variant.precision)
    with ThreadPoolExecutor(1, initializer=give_way) as thread:
        opened = thread.submit(opening, intra_op_threads=intra_op_threads, spins=spins).result()
    golden.replay(opened)
    return opened


def _has_room_twice(model: OnnxModel, memory_bytes: int) -> bool:
    """Say whether a second session is little beside the memory: some 2.2 times the file (Lite0), at most 7 %."""
    return (model.bundle.folder / model.variant.file).stat().st_size <= memory_bytes // 32


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


def run_sizes(max_run: int) -> tuple[int, ...]:
    """Return the sizes that are warmed: the powers of two below max_run, and max_run."""
    return (*(2**power for power in range(max_run.bit_length()) if 2**power < max_run), max_run)


def _batcher(
    model: OnnxModel,
    lone: OnnxModel | None,
    *,
    settings: ServerSettings,
    plan: Plan,
    metrics: ModelMetrics,
    occupancy: Occupancy,
) -> PictureBatcher:
    """Warm the usual sizes of a run, and prove them; return the batcher, not yet started."""
    sizes = run_sizes(plan.max_run)
    model.reserve(sizes)
    for size in sizes[1:]:
        golden.replay_together(model, size)
    if lone:
        lone.reserve(sizes[:1])
    limits = BatcherLimits(
        instances=plan.instances,
        prepare_threads=plan.decode_threads,
        run_sizes=sizes,
        max_batch=plan.max_batch,
        cores=own_cores(plan.instances) if plan.intra_op_threads == 1 else (),
        max_wait_ms=settings.max_wait_ms,
        max_queue_items=settings.max_queue_images,
        max_queue_bytes=settings.queue_bytes,
        max_queue_ms=settings.max_queue_ms,
    )
    decode_limits = DecodeLimits(
        max_bytes=settings.max_image_bytes,
        max_pixels=settings.max_pixels,
        max_decoding_bytes=settings.decoding_bytes,
    )
    make_steps = partial(PictureSteps, limits=decode_limits, decoding=occupancy.decoding, metrics=metrics)
    steps = make_steps(model, max_run=plan.max_run)
    run_lone = make_steps(lone, max_run=1).run if lone else None
    return Batcher(steps.prepare, steps.run, limits=limits, observer=metrics, run_lone=run_lone, occupancy=occupancy)
