"""Threads and batches: the rule, the measurement, and what it remembers."""

import itertools
import json
import threading
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import structlog
import tiny_bundle
from test_process import ENVIRONMENT, process

from bundle.preprocess import load_input
from bundle.repository import load_bundle
from bundle.runtime import OnnxModel, open_model
from serving.loading import load_model, run_sizes
from serving.metrics import Metrics
from serving.plan import Plan, make_plan
from serving.plan_search import PlanCache, Planner, machine, pictures_per_s, search_plan
from serving.settings import ServerSettings

RULE = Plan(instances=2, intra_op_threads=1, lone_threads=2, decode_threads=0, max_batch=8, max_run=2)
SINGLE = replace(RULE, max_run=1)
FREE = nullcontext()
PATIENCE_S = 20


def test_cpu_plan_runs_one_thread_instances_side_by_side():
    """One instance a core, one thread each, and each decodes its own."""
    plan = make_plan(cores=4, provider="cpu")
    assert plan == Plan(instances=4, intra_op_threads=1, lone_threads=4, decode_threads=0, max_batch=8, max_run=2)
    assert make_plan(cores=2, provider="cpu") == RULE


def test_cuda_plan_has_one_instance():
    """A GPU takes large batches one after the other, each in one run."""
    plan = make_plan(cores=4, provider="cuda")
    assert plan == Plan(instances=1, intra_op_threads=1, lone_threads=1, decode_threads=4, max_batch=32, max_run=32)


def test_given_numbers_are_taken():
    """0 alone means: decide."""
    plan = make_plan(cores=4, provider="cpu", instances=2, intra_op_threads=3, decode_threads=5, max_batch=6)
    assert plan == Plan(instances=2, intra_op_threads=3, lone_threads=3, decode_threads=5, max_batch=6, max_run=2)
    assert make_plan(cores=4, provider="cpu", max_batch=1).max_run == 1
    assert make_plan(cores=4, provider="cuda", max_batch=6).max_run == 6


def test_runs_have_few_sizes_and_the_largest():
    """Powers of two, and the limit itself."""
    assert [run_sizes(limit) for limit in (1, 8, 12)] == [(1,), (1, 2, 4, 8), (1, 2, 4, 8, 12)]


def chosen(run_ms, *, clock=lambda: 0.0):
    """The plan for two cores where a run of so many pictures on so many threads takes run_ms(threads, size)."""

    def measure(threads, plan):
        return min(plan.instances, 2) * plan.max_run / run_ms(threads, plan.max_run)

    return search_plan(RULE, lambda threads, _spins: threads, cores=2, measure=measure, clock=clock)


def shape(plan):
    """What a plan runs side by side."""
    return plan.instances, plan.intra_op_threads, plan.max_run


def test_runs_of_one_are_chosen_where_larger_ones_cost():
    """Two pictures in the time of two and a half."""
    assert shape(chosen(lambda _threads, size: 4.0 if size == 1 else 10.0)) == shape(SINGLE)


def test_the_rule_stays_where_nothing_is_clearly_faster():
    """A run of two costs a little more than twice as much."""
    assert shape(chosen(lambda _threads, size: 4.0 * size + (size == 2))) == shape(RULE)


def test_a_disturbance_of_one_measurement_changes_nothing():
    """The rule's first run comes while something else has the machine."""
    disturbed = iter([True])
    plan = chosen(lambda _threads, size: 4.0 * size * (10 if next(disturbed, False) else 1))
    assert shape(plan) == shape(RULE)


def test_a_network_too_slow_to_be_measured_keeps_the_rule():
    """The first measurement has used up the time: nobody waits for the others."""
    seconds = iter([0.0, 0.0])
    assert chosen(lambda _threads, size: 4.0 if size == 1 else 10.0, clock=lambda: next(seconds, 1.0)) == RULE


@pytest.mark.parametrize(("turn_s", "turns"), [(0.05, 10), (0.3, 2), (0.5, 2), (0.55, 1), (1.5, 1)])
def test_nothing_is_measured_that_would_end_after_a_second(turn_s, turns):
    """Under a small quota a turn takes long: as long as the one before, as far as anybody knows."""
    now, measured = 0.0, []

    def measure(_run, plan):
        nonlocal now
        now += turn_s
        measured.append(plan)
        return 1.0

    search_plan(RULE, lambda *_: None, cores=2, measure=measure, clock=lambda: now)
    assert len(measured) == turns


def test_one_wide_instance_is_chosen_where_it_pays():
    """A run on two threads takes an eighth of one on one."""
    plan = chosen(lambda threads, size: size * (16.0 if threads == 1 else 2.0))
    assert (plan.instances, plan.intra_op_threads, plan.lone_threads) == (1, 2, 2)


@pytest.mark.parametrize(("wide_ms", "lone_threads"), [(3.8, 2), (4.2, 1)])
def test_a_lone_picture_gets_more_threads_where_they_help(wide_ms, lone_threads):
    """Two threads against 4 ms on one."""
    plan = chosen(lambda threads, size: size * (4.0 if threads == 1 else wide_ms))
    assert plan == replace(RULE, lone_threads=lone_threads)


def test_a_single_core_has_no_wide_plan():
    """It would be the rule's own, and measured for nothing."""
    rule, measured = make_plan(cores=1, provider="cpu"), []
    search_plan(rule, lambda *_: None, cores=1, measure=lambda _run, plan: measured.append(plan) or 1.0)
    assert set(measured) == {rule, replace(rule, max_run=1)}


def test_all_instances_are_measured_at_once():
    """All must be inside a run together, or the barrier breaks; that first turn, which takes memory, does not count."""
    together = threading.Barrier(RULE.instances, timeout=PATIENCE_S)
    assert pictures_per_s(lambda _size: together.wait(), RULE, seconds=0.0) == 0


def test_a_network_that_cannot_run_says_so():
    """No thread waits for one that failed."""

    def run(size):
        raise RuntimeError(f"{size} pictures")

    with pytest.raises(RuntimeError, match="2 pictures"):
        pictures_per_s(run, RULE)

    def run_once(size):
        if len(begun) == RULE.instances - 1:
            raise MemoryError(size)
        begun.append(size)

    begun = []
    with pytest.raises(MemoryError):  # and not that a barrier broke
        pictures_per_s(run_once, RULE)


def test_plans_are_remembered_by_model_and_machine(tmp_path):
    """Another model, or a file that is damaged, means to measure again."""
    path, key = tmp_path / "cache" / "plans.json", ("digest", *machine(2, "1.30"))
    PlanCache(path).put(key, RULE)
    PlanCache(path).put(("other", "key"), SINGLE)
    assert PlanCache(path).get(key, cores=2) == RULE
    assert PlanCache(path).get(("digest", *machine(4, "1.30")), cores=4) is None
    whole = path.read_text()
    bad = [whole.replace('"instances": 2', f'"instances": {value}') for value in ("0", "3", "true", "600")]
    for damaged in (*bad, whole.replace('"max_batch": 8', '"max_batch": 4096'), "no JSON", "[" * 100_000):
        assert damaged != whole
        path.write_text(damaged)
        assert PlanCache(path).get(key, cores=2) is None


def test_a_cache_that_cannot_be_written_costs_nothing(tmp_path):
    """A container's root is read-only: the plan is measured at every start."""
    (tmp_path / "file").write_text("")
    cache = PlanCache(tmp_path / "file" / "plans.json")
    cache.put(("digest",), RULE)
    assert cache.get(("digest",), cores=2) is None


@pytest.mark.parametrize(("provider", "is_warned"), [("auto", True), ("cpu", False)])
def test_a_gpu_that_would_not_start_is_told(models, monkeypatch, provider, is_warned):
    """`auto` serves on the CPU then: right, and perhaps fifty times slower than its operator believes."""
    monkeypatch.setattr("serving.loading.has_cuda", lambda: True)
    settings = ServerSettings(http_address="off", instances=1, provider=provider)
    with structlog.testing.capture_logs() as lines:
        load_model(models / "colours" / "1", settings, metrics=Metrics()).close(20)
    assert any(line["event"].startswith("CUDA would not start") for line in lines) == is_warned


@pytest.mark.parametrize(("threads", "is_lone", "decoded"), [(1, False, 3), (2, False, 3), (2, True, 0)])
def test_plans_are_measured_with_decoding_and_lone_pictures_without(models, monkeypatch, threads, is_lone, decoded):
    """While one wide instance decodes all cores but one idle; a lone picture's core does that in any case."""
    loaded, decoding = [], threading.Lock()

    def load(data, spec):
        assert decoding.locked()
        loaded.append(data)
        return load_input(data, spec)

    def search(rule, open_run, *, cores):
        assert len(open_run(threads, is_lone)(3).logits) == 3
        return rule

    monkeypatch.setattr("serving.plan_search.load_input", load)
    monkeypatch.setattr("serving.plan_search.search_plan", search)
    bundle = load_bundle(models / "colours" / "1")
    Planner(PlanCache(models / "no.json")).plan(RULE, open_model(bundle), cores=2, decoding=decoding)
    assert loaded == bundle.golden_pictures()[:decoded]


@pytest.mark.parametrize(
    ("settings", "limit", "lone_threads"),
    [
        ({}, None, 2),
        ({"instances": 1}, None, 1),
        ({"intra_op_threads": 1}, None, 1),
        ({}, 2**20, 2),
        ({}, 2**15, 1),
        ({"workers": 32}, 2**20, 1),
    ],
)
def test_a_lone_picture_gets_every_core(models, monkeypatch, settings, limit, lone_threads):
    """Not where somebody said a smaller number, or a second session is much beside the memory limit."""
    opened = []

    def open_noting(bundle, *, precision, intra_op_threads, spins):
        model = open_model(bundle, precision=precision, intra_op_threads=intra_op_threads, spins=spins)
        run = model.run
        model.run = lambda images: (opened.append((intra_op_threads, len(images))), run(images))[1]
        return model

    monkeypatch.setattr("serving.loading.usable_cores", lambda **_: 2)
    monkeypatch.setattr("serving.settings.usable_memory_bytes", lambda: limit or 2**40)
    monkeypatch.setattr("serving.loading.open_model", open_noting)
    with structlog.testing.capture_logs() as lines:
        served = load_model(models / "colours" / "1", ServerSettings(**settings), metrics=Metrics())
    (ready,) = [line for line in lines if line["event"] == "model ready"]
    assert ready["lone_threads"] == lone_threads
    opened.clear()
    crop_px = served.contract.preprocess.crop_px
    (future,) = served.submit([np.zeros((crop_px, crop_px, 3), np.uint8)])  # there is no memory to decode
    assert len(future.result(PATIENCE_S).scores) == len(served.contract.labels)
    assert opened == [(2, 1)] * (lone_threads == 2)
    assert served.close(PATIENCE_S)


def test_a_plan_is_measured_once_a_model_machine_and_process(models, tmp_path, monkeypatch):
    """A restart finds it in the file; a new version takes over the old one's; another model is measured anew."""
    searched = []

    def search(rule, open_run, *, cores):
        searched.append(cores)
        return SINGLE

    monkeypatch.setattr("serving.plan_search.search_plan", search)
    cache = PlanCache(tmp_path / "plans.json")
    tiny_bundle.write(models, name="shades")
    colours, shades = (open_model(load_bundle(models / name / "1")) for name in ("colours", "shades"))
    newer = open_model(load_bundle(tiny_bundle.write(models, scale=2.0)))
    planner = Planner(cache)
    assert [planner.plan(RULE, model, cores=2, decoding=FREE) for model in (colours, newer, shades)] == [SINGLE] * 3
    assert searched == [2, 2]
    restarted = Planner(cache)
    assert [restarted.plan(RULE, model, cores=2, decoding=FREE) for model in (shades, colours)] == [SINGLE] * 2
    assert searched == [2, 2]
    Planner(cache).plan(RULE, newer, cores=2, decoding=FREE)
    Planner(cache).plan(RULE, colours, cores=4, decoding=FREE)
    assert searched == [2, 2, 2, 4]


@pytest.mark.parametrize("change", ["precision", "runtime"])
def test_a_plan_is_one_variants_and_one_runtimes(models, tmp_path, monkeypatch, change):
    """INT8 may want other threads than floats, and another onnxruntime too."""
    searched = []
    monkeypatch.setattr("serving.plan_search.search_plan", lambda *_, **__: searched.append(1) or SINGLE)
    bundle = load_bundle(models / "colours" / "1")
    cache = PlanCache(tmp_path / "plans.json")
    Planner(cache).plan(
        RULE, SimpleNamespace(bundle=bundle, variant=SimpleNamespace(precision="fp32")), cores=2, decoding=FREE
    )
    if change == "runtime":
        monkeypatch.setattr("onnxruntime.__version__", "9.9")
    precision = "int8" if change == "precision" else "fp32"
    Planner(cache).plan(
        RULE, SimpleNamespace(bundle=bundle, variant=SimpleNamespace(precision=precision)), cores=2, decoding=FREE
    )
    assert searched == [1, 1]


def test_nothing_is_measured_while_requests_are_answered(models, tmp_path, monkeypatch):
    """A model that comes then has the rule's plan, which is not remembered; what is remembered holds."""
    monkeypatch.setattr("serving.plan_search.search_plan", lambda *_, **__: SINGLE)
    model, cache = open_model(load_bundle(models / "colours" / "1")), PlanCache(tmp_path / "plans.json")
    serving = Planner(cache)
    serving.stop_measuring()
    assert serving.plan(RULE, model, cores=2, decoding=FREE) == RULE
    assert Planner(cache).plan(RULE, model, cores=2, decoding=FREE) == SINGLE
    again = Planner(cache)
    again.stop_measuring()
    assert again.plan(RULE, model, cores=2, decoding=FREE) == SINGLE


def test_numbers_that_are_given_are_not_measured():
    """One of them is enough; so is --plan fixed."""
    given = [{}, {"plan": "fixed"}, {"instances": 1}, {"intra_op_threads": 1}, {"decode_threads": 1}, {"max_batch": 1}]
    assert [ServerSettings(**one).plans_itself for one in given] == [True, *[False] * 5]


def test_a_batch_takes_as_many_runs_as_it_needs(models, monkeypatch):
    """Seven pictures in runs of two, each answered for itself."""
    ran = []
    monkeypatch.setattr(
        OnnxModel, "run", lambda model, images, run=OnnxModel.run: (ran.append(len(images)), run(model, images))[1]
    )
    served = load_model(models / "colours" / "1", ServerSettings(instances=1), metrics=Metrics())
    ran.clear()
    colours = ["red", "green", "blue", "red", "blue", "green", "green"]
    futures = served.submit([tiny_bundle.picture(colour) for colour in colours])
    scores = [future.result(PATIENCE_S).scores for future in futures]
    assert [served.contract.labels[int(row.argmax())] for row in scores] == colours
    assert ran == [2, 2, 2, 1]
    assert served.close(PATIENCE_S)


def test_what_answers_lone_pictures_is_proved_too(models, monkeypatch):
    """A session with more threads that answers otherwise answers nobody."""

    def open_other(bundle, *, precision, intra_op_threads, spins):
        model = open_model(bundle, precision=precision, intra_op_threads=intra_op_threads, spins=spins)
        right = model.run
        model.run = lambda images: right(images)._replace(logits=-right(images).logits)
        return model

    monkeypatch.setattr("serving.loading.usable_cores", lambda **_: 2)
    monkeypatch.setattr("serving.loading.open_model", open_other)
    with structlog.testing.capture_logs() as lines:
        served = load_model(models / "colours" / "1", ServerSettings(), metrics=Metrics())
    assert any("answered otherwise" in line["event"] and "golden picture" in line["reason"] for line in lines)
    (future,) = served.submit([tiny_bundle.picture("red")])
    assert served.contract.labels[int(future.result(PATIENCE_S).scores.argmax())] == "red"
    assert served.close(PATIENCE_S)


def test_threads_that_are_not_to_be_had_are_said_and_waited_for_by_nobody(monkeypatch):
    """Those that are there would stand at the barrier for ever."""
    start, started = threading.Thread.start, []

    def start_one(thread):
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_one)
    with pytest.raises(RuntimeError, match="new thread"):
        pictures_per_s(lambda _size: None, RULE)


def test_what_answers_lone_pictures_has_its_memory_before_the_first_one_comes(models, monkeypatch):
    """Else the first caller waits for it."""
    reserved = []
    monkeypatch.setattr("serving.loading.usable_cores", lambda **_: 2)
    monkeypatch.setattr(OnnxModel, "reserve", lambda model, sizes: reserved.append((id(model), tuple(sizes))))
    served = load_model(models / "colours" / "1", ServerSettings(), metrics=Metrics())
    (many, sizes), (lone, alone) = reserved
    assert (many != lone, sizes, alone) == (True, (1, 2), (1,))
    assert served.close(PATIENCE_S)


def test_a_server_that_answers_measures_no_model_that_comes_then(models, tmp_path, monkeypatch):
    """It would take the cores from its callers."""
    monkeypatch.setitem(ENVIRONMENT, "XDG_CACHE_HOME", str(tmp_path / "cache"))
    with process(models, "--http-address", "off", "--log-level", "debug", "--watch-s", "0.05") as started:
        events = map(json.loads, started.stderr)
        before = list(itertools.takewhile(lambda line: line["event"] != "SERVING", events))
        assert sum(line["event"] == "plans measured" for line in before) == 1
        tiny_bundle.write(models, name="shades")
        later = itertools.takewhile(
            lambda line: (line["event"], line.get("model")) != ("model ready", "shades"), events
        )
        assert "plans measured" not in [line["event"] for line in later]


def test_a_plan_that_cannot_be_kept_leaves_no_file_behind(tmp_path):
    """At every start one more."""
    (tmp_path / "plans.json").mkdir()  # which no file replaces
    plan = Plan(instances=1, intra_op_threads=1, lone_threads=1, decode_threads=0, max_batch=1, max_run=1)
    PlanCache(tmp_path / "plans.json").put(("model",), plan)
    assert [path.name for path in tmp_path.iterdir()] == ["plans.json"]
