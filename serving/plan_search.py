"""Measure a few plans for one model on this CPU, and remember the best.

What is measured is what the instances of a plan will do, all at once, with the bundle's golden pictures: decode, scale,
run; of a lone picture the run alone. A fraction of a second each, twice where there is time. The rule's own plan stays
unless another is clearly faster. The result is kept by model digest and machine in the user's cache, where that can be
written. Nothing is measured while requests are answered: it would take their cores, and be disturbed by them. A later
version of a model takes over its plan; a model that comes later has the rule's, or what is remembered.
"""

import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, fields, replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime
import structlog
from numpy.typing import NDArray

from bundle.preprocess import load_input
from bundle.runtime import OnnxModel, open_model
from serving.plan import Plan

Run = Callable[[int], object]  # takes so many pictures together
SECONDS: Final = 0.06  # of measuring a plan once
BUDGET_S: Final = 0.6  # none is begun after it; a network that needs longer keeps the rule's plan
MOST_S: Final = 1.0  # nor one that would end after this, were it as slow as the slowest before it
# Times as fast as the rule's plan, or that stays. Small golden pictures leave more in the caches than callers' do: runs
# of one made 1.03 to 1.13 of runs of two with them, and 0.97 with pictures of 140 KB over the network (INT8).
CLEARLY: Final = 1.15

_MOST_ITEMS: Final = 1024  # of a batch or a run that is remembered

log = structlog.get_logger(__name__)


def pictures_per_s(run: Run, plan: Plan, *, seconds: float = SECONDS) -> float:
    """Return the rate at which all instances of a plan together run pictures, once all of them have run at once.

    What runs first takes its memory from the system: without the first turn the plan that is measured first loses.
    """
    warmed = threading.Barrier(plan.instances)

    def work() -> float:
        try:
            run(plan.max_run)
        except Exception:
            warmed.abort()
            raise
        warmed.wait()
        started, count = time.perf_counter(), 0
        while (elapsed_s := time.perf_counter() - started) < seconds:
            run(plan.max_run)
            count += plan.max_run
        return count / elapsed_s

    with ThreadPoolExecutor(plan.instances) as pool:
        try:
            done = [pool.submit(work) for _ in range(plan.instances)]
        except RuntimeError:  # no more threads are to be had: those that are here would wait for them
            warmed.abort()
            raise
    if errors := [error for one in done if (error := one.exception())]:
        raise next((error for error in errors if not isinstance(error, threading.BrokenBarrierError)), errors[0])
    return sum(one.result() for one in done)  # each by its own time: their last runs end one after the other


def search_plan(
    rule: Plan,
    open_run: Callable[[int, bool], Run],
    *,
    cores: int,
    measure: Callable[[Run, Plan], float] = pictures_per_s,
    clock: Callable[[], float] = time.monotonic,
) -> Plan:
    """Return the fastest of a few plans; `open_run` takes intra-op threads, and whether it is for lone pictures.

    Beside the rule's plan: one picture at a time, and one instance that uses every core. Each counts as fast as it was
    at best: what else the machine does makes a plan slower, never faster. A lone picture gets more threads unless they
    make it slower: another's short use of a core would else be remembered as that core's.
    """
    wide_plan = replace(rule, instances=1, intra_op_threads=cores, max_batch=rule.max_run)
    plans = (rule, replace(rule, max_run=1), *([wide_plan] if cores > 1 else []))
    bare = replace(rule, instances=1, max_run=1)
    lone = replace(bare, intra_op_threads=rule.lone_threads)
    *first, wide = ((plan, False) for plan in dict.fromkeys(plans))
    lonely = [(bare, True), (lone, True)] if lone != bare else []
    tasks = [*first, *lonely, wide]  # most likely useless last
    runs: dict[tuple[int, bool], Run] = {}
    rates = dict.fromkeys(tasks, 0.0)
    began, slowest_s = clock(), 0.0
    for plan, is_lone in [*rates] * 2:
        turn = clock()
        if turn - began < BUDGET_S and turn - began + slowest_s <= MOST_S:
            kind = plan.intra_op_threads, is_lone
            runs[kind] = runs.get(kind) or open_run(*kind)
            rates[plan, is_lone] = max(rates[plan, is_lone], measure(runs[kind], plan))
            slowest_s = max(slowest_s, clock() - turn)
    log.debug("plans measured", plans=[asdict(plan) | {"rate": rate} for (plan, _), rate in rates.items()])
    best = max(plans, key=lambda plan: rates[plan, False] / (1.0 if plan == rule else CLEARLY))
    is_slow = 0 < rates.get((lone, True), 0.0) < rates.get((bare, True), 0.0)
    return replace(best, lone_threads=best.intra_op_threads) if is_slow or best.intra_op_threads > 1 else best


class PlanCache:
    """Plans by model and machine in one JSON file; a file that cannot be read or written costs a measurement only."""

    def __init__(self, path: Path | None = None) -> None:
        home = Path(os.environ.get("HOME") or "/")  # not Path.home(): a container's user need not be in passwd
        base = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
        self._path = path or base / "calotype" / "plans.json"

    def get(self, key: Sequence[str], *, cores: int) -> Plan | None:
        """Return the plan that was kept, or None where there is none, or none that could be for so many cores."""
        found = self._read().get("/".join(key))
        names = [field.name for field in fields(Plan)]
        if not isinstance(found, dict) or set(found) != set(names):
            return None
        least = dict.fromkeys(names, 1) | {"decode_threads": 0}
        most = dict.fromkeys(names, cores) | {"max_batch": _MOST_ITEMS, "max_run": _MOST_ITEMS}
        if not all(type(found[name]) is int and least[name] <= found[name] <= most[name] for name in names):
            return None
        return Plan(**found)

    def put(self, key: Sequence[str], plan: Plan) -> None:
        """Keep a plan."""
        plans = self._read() | {"/".join(key): asdict(plan)}
        scratch = self._path.with_suffix(f".{uuid.uuid4().hex}")  # containers that share it have the same process ids
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            scratch.write_text(json.dumps(plans, indent=1), encoding="utf-8")
            scratch.replace(self._path)
        except OSError as error:
            log.debug("plan not kept", path=str(self._path), reason=error.strerror)
            with suppress(OSError):
                scratch.unlink(missing_ok=True)

    def _read(self) -> dict[str, object]:
        try:
            plans = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return plans if isinstance(plans, dict) else {}


class Planner:
    """Plans the models of one server."""

    def __init__(self, cache: PlanCache | None = None) -> None:
        self._cache = cache or PlanCache()
        self._by_name: dict[str, Plan] = {}
        self._measures = True

    def stop_measuring(self) -> None:
        """Hear that requests are answered from now on."""
        self._measures = False

    def plan(self, rule: Plan, model: OnnxModel, *, cores: int, decoding: AbstractContextManager[object]) -> Plan:
        """Return the plan for a model on a CPU: measured, remembered, that of an earlier version, or the rule's.

        `decoding` is held while a picture is decoded.
        """
        contract = model.bundle.manifest.contract
        if contract.name not in self._by_name:
            rules = f"decoding, rule {rule.instances} x {rule.max_batch} by {rule.max_run}, lone {rule.lone_threads}"
            key = (model.bundle.digest, model.variant.precision, *machine(cores, onnxruntime.__version__), rules)
            plan = self._cache.get(key, cores=cores)
            if plan is None and not self._measures:
                plan = rule
            elif plan is None:
                plan = search_plan(rule, partial(_open_run, model, decoding), cores=cores)
                self._cache.put(key, plan)
            self._by_name[contract.name] = plan
        return self._by_name[contract.name]


def _open_run(model: OnnxModel, decoding: AbstractContextManager[object], threads: int, is_lone: bool) -> Run:
    """Return what an instance does with so many pictures; of lone ones the run alone, with threads that spin."""
    bundle, spec = model.bundle, model.bundle.manifest.contract.preprocess
    opened = model  # has one thread
    if threads > 1:
        opened = open_model(bundle, precision=model.variant.precision, intra_op_threads=threads, spins=is_lone)
    if is_lone:
        return lambda size: opened.run(np.zeros((size, spec.crop_px, spec.crop_px, 3), dtype=np.uint8))
    pictures = cycle(bundle.golden_pictures())

    def prepared() -> NDArray[np.uint8]:
        with decoding:
            return load_input(next(pictures), spec)

    return lambda size: opened.run(np.stack([prepared() for _ in range(size)]))


def machine(cores: int, runtime_version: str) -> tuple[str, ...]:
    """Return what a measurement depends on beside the model: CPU, usable cores, onnxruntime."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        lines = []
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return cpu, f"{cores} cores", f"onnxruntime {runtime_version}"
