"""Measure a few plans for one model on this CPU, and remember the best.

What is measured is inference alone, all instances at work at once, for a fraction of a second a plan, twice where there
is time. The rule's own plan stays unless another is clearly faster. The result is kept by model digest and machine in
the user's cache, where that can be written. Nothing is measured while requests are answered: it would take their cores,
and be disturbed by them. A later version of a model takes over its plan; a model that comes later has the rule's, or
what is remembered.
"""

import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime
import structlog

from bundle.runtime import OnnxModel, open_model
from serving.plan import Plan

Run = Callable[[int], object]  # runs so many pictures together
SECONDS: Final = 0.06  # of measuring a plan once
BUDGET_S: Final = 0.6  # none is begun after it; a network that needs longer keeps the rule's plan
MOST_S: Final = 1.0  # nor one that would end after this, were it as slow as the slowest before it
# Times as fast as the rule's plan, or that stays:
SINGLY: Final = 1.15  # at the end of so short a time one thread waits for another's longer run
WIDE: Final = 1.3  # all cores but one idle while it decodes: 223 for 285 pictures/s of about equal inference (INT8)

_MOST_ITEMS: Final = 1024  # of a batch or a run that is remembered

log = structlog.get_logger(__name__)


def pictures_per_s(run: Run, plan: Plan, *, seconds: float = SECONDS) -> float:
    """Return the rate at which all instances of a plan together run pictures, once all of them have run at once.

    What runs first takes its memory from the system: without the first turn the plan that is measured first loses.
    """
    counts = [0] * plan.instances
    started = 0.0

    def start() -> None:
        nonlocal started
        started = time.perf_counter()

    warmed = threading.Barrier(plan.instances, action=start)

    def work(instance: int) -> None:
        try:
            run(plan.max_run)
        except Exception:
            warmed.abort()
            raise
        warmed.wait()
        while time.perf_counter() - started < seconds:
            run(plan.max_run)
            counts[instance] += plan.max_run

    with ThreadPoolExecutor(plan.instances) as pool:
        try:
            done = [pool.submit(work, instance) for instance in range(plan.instances)]
        except RuntimeError:  # no more threads are to be had: those that are here would wait for them
            warmed.abort()
            raise
    if errors := [error for one in done if (error := one.exception())]:
        raise next((error for error in errors if not isinstance(error, threading.BrokenBarrierError)), errors[0])
    return sum(counts) / (time.perf_counter() - started)


def search_plan(
    rule: Plan,
    open_run: Callable[[int, bool], Run],
    *,
    cores: int,
    measure: Callable[[Run, Plan], float] = pictures_per_s,
    clock: Callable[[], float] = time.monotonic,
) -> Plan:
    """Return the fastest of a few plans; `open_run` takes intra-op threads, and whether they may spin.

    Beside the rule's plan: one picture at a time, and one instance that uses every core. Each counts as fast as it was
    at best: what else the machine does makes a plan slower, never faster. A lone picture gets more threads unless they
    make it slower: another's short use of a core would else be remembered as that core's.
    """
    wide_plan = replace(rule, instances=1, intra_op_threads=cores, max_batch=rule.max_run)  # one thread decodes it all
    plans = (rule, replace(rule, max_run=1), *([wide_plan] if cores > 1 else []))
    bare = replace(rule, instances=1, max_run=1)
    lone = replace(bare, intra_op_threads=rule.lone_threads)
    *first, wide = ((plan, False) for plan in dict.fromkeys(plans))
    spinning = [(lone, True)] if lone != bare else []
    tasks = [*first, (bare, False), *spinning, wide]  # and whether threads may spin; most likely useless last
    runs: dict[tuple[int, bool], Run] = {}
    rates = dict.fromkeys(tasks, 0.0)
    began, slowest_s = clock(), 0.0
    for plan, spins in [*rates] * 2:
        turn = clock()
        if turn - began < BUDGET_S and turn - began + slowest_s <= MOST_S:
            kind = plan.intra_op_threads, spins
            runs[kind] = runs.get(kind) or open_run(*kind)
            rates[plan, spins] = max(rates[plan, spins], measure(runs[kind], plan))
            slowest_s = max(slowest_s, clock() - turn)
    log.debug("plans measured", plans=[asdict(plan) | {"rate": rate} for (plan, _), rate in rates.items()])
    best = max(plans, key=lambda plan: rates[plan, False] / _handicap(plan, rule))
    is_slow = 0 < rates.get((lone, True), 0.0) < rates[bare, False]
    return replace(best, lone_threads=best.intra_op_threads) if is_slow or best.intra_op_threads > 1 else best


def _handicap(plan: Plan, rule: Plan) -> float:
    if plan == rule:
        return 1.0
    return WIDE if plan.intra_op_threads > rule.intra_op_threads else SINGLY


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

    def plan(self, rule: Plan, model: OnnxModel, *, cores: int) -> Plan:
        """Return the plan for a model on a CPU: measured, remembered, that of an earlier version, or the rule's."""
        contract = model.bundle.manifest.contract
        if contract.name not in self._by_name:
            rules = f"warmed, rule {rule.instances} x {rule.max_batch} by {rule.max_run}, lone {rule.lone_threads}"
            key = (model.bundle.digest, model.variant.precision, *machine(cores, onnxruntime.__version__), rules)
            plan = self._cache.get(key, cores=cores)
            if plan is None and not self._measures:
                plan = rule
            elif plan is None:
                plan = search_plan(rule, partial(_open_run, model), cores=cores)
                self._cache.put(key, plan)
            self._by_name[contract.name] = plan
        return self._by_name[contract.name]


def _open_run(model: OnnxModel, threads: int, spins: bool) -> Run:
    """Return the runs of a session like that; of the model itself, which has one thread that rests."""
    side = model.bundle.manifest.contract.preprocess.crop_px
    opened = model
    if threads > 1 or spins:
        precision = model.variant.precision
        opened = open_model(model.bundle, precision=precision, provider="cpu", intra_op_threads=threads, spins=spins)
    return lambda size: opened.run(np.zeros((size, side, side, 3), dtype=np.uint8))


def machine(cores: int, runtime_version: str) -> tuple[str, ...]:
    """Return what a measurement depends on beside the model: CPU, usable cores, onnxruntime."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        lines = []
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return cpu, f"{cores} cores", f"onnxruntime {runtime_version}"
