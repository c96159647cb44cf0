"""Which cores the threads that compute run on."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import tiny_bundle

from serving.admission import BatcherLimits
from serving.batcher import Batcher
from serving.loading import load_model
from serving.metrics import Metrics
from serving.occupancy import Occupancy
from serving.scheduling import OwnCore, _move, give_way, own_cores
from serving.settings import ServerSettings

PATIENCE_S = 20
CORE = 3
ALL = os.sched_getaffinity(0)


class Machine:
    """Clocks, and where a thread was told to run."""

    def __init__(self):
        self.wall_s = self.cpu_s = 100.0
        self.moves, self.occupancy = [], Occupancy()

    def own_core(self, core=CORE):
        return OwnCore(core, self.occupancy, move=self.moves.append, wall=lambda: self.wall_s, cpu=lambda: self.cpu_s)

    def batch(self, core, wall_s, *, share):
        """One batch of so long, for a share of which the thread runs; another is under way."""
        with self.occupancy:
            self.lone_batch(core, wall_s, share=share)

    def lone_batch(self, core, wall_s=0.02, *, share=0.9):
        """The same without another."""
        with self.occupancy, core:
            self.wall_s += wall_s
            self.cpu_s += share * wall_s


@pytest.fixture
def machine():
    return Machine()


def test_a_thread_stays_on_its_core_beside_the_one_that_talks(machine):
    """Which takes a fifth of it, and now and then most of a batch's time."""
    core = machine.own_core()
    for number in range(100):
        machine.batch(core, 0.02, share=0.1 if number % 5 == 0 else 0.8)
    assert machine.moves == [CORE]


def test_a_thread_leaves_a_core_that_somebody_else_has(machine):
    """For half a minute; then it tries again."""
    core = machine.own_core()
    machine.batch(core, 0.2, share=0.1)
    assert machine.moves == [CORE, None]
    machine.batch(core, 29, share=0.1)
    assert machine.moves == [CORE, None]
    machine.wall_s += 2
    machine.batch(core, 0.2, share=0.9)
    assert machine.moves == [CORE, None, CORE]


def test_time_between_batches_does_not_count(machine):
    """An idle thread does not lack its core."""
    core = machine.own_core()
    for _ in range(100):
        machine.batch(core, 0.02, share=0.9)
        machine.wall_s += 5
    assert machine.moves == [CORE]


def test_a_batch_that_has_the_machine_to_itself_may_run_anywhere(machine):
    """It is told once, and again when others come."""
    core = machine.own_core()
    machine.lone_batch(core)
    machine.lone_batch(core)
    assert machine.moves == []
    machine.batch(core, 0.02, share=0.9)
    machine.batch(core, 0.02, share=0.9)
    assert machine.moves == [CORE]
    for _ in range(3):  # one may have met another
        machine.lone_batch(core)
    assert machine.moves == [CORE, None]


def test_a_core_is_one_batchs_alone(machine):
    """Two models have the same cores: the second batch goes where there is room."""
    first, second = machine.own_core(), machine.own_core()
    with machine.occupancy, machine.occupancy, first, second:
        assert machine.moves == [CORE]
    machine.batch(second, 0.02, share=0.9)
    assert machine.moves == [CORE, CORE]
    with machine.occupancy, machine.occupancy, second, first:
        assert machine.moves == [CORE, CORE, None]


@pytest.mark.parametrize("core", [10**6, None])
def test_a_system_that_refuses_to_move_a_thread_costs_nothing(monkeypatch, core):
    """A core that is none, and a sandbox without the call."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: (_ for _ in ()).throw(PermissionError()))
    _move(core)


def test_a_thread_without_a_core_is_left_to_the_system(machine):
    """As where there are more cores than threads."""
    machine.batch(machine.own_core(None), 1.0, share=0.1)
    assert machine.moves == []


def test_cores_are_given_only_where_the_threads_take_all():
    """With fewer threads than cores the system finds them an idle one; with more they would crowd."""
    assert own_cores(len(ALL)) == tuple(sorted(ALL))
    assert own_cores(len(ALL) + 1) == own_cores(0) == ()


@pytest.mark.skipif(len(ALL) == 1, reason="one core is everybody's")
def test_each_instance_runs_on_its_own_core():
    """The real system, asked from within the batches; all instances are inside one at once."""
    seen, together = [], threading.Barrier(len(ALL), timeout=PATIENCE_S)

    def run(rows):
        together.wait()
        seen.append(os.sched_getaffinity(0))
        return rows

    limits = BatcherLimits(
        instances=len(ALL), prepare_threads=0, run_sizes=(1,), max_batch=1, cores=own_cores(len(ALL))
    )
    busy = Occupancy()
    batcher = Batcher(lambda payload: payload, run, limits=limits, occupancy=busy)
    batcher.start()
    with busy:  # another model's batch
        futures = [batcher.submit([number], sizes_bytes=[1])[0] for number in range(len(ALL))]
        assert [future.result(PATIENCE_S) for future in futures] == list(range(len(ALL)))
    assert batcher.close(PATIENCE_S)
    assert sorted(map(sorted, seen)) == [[core] for core in sorted(ALL)]
    assert os.sched_getaffinity(0) == ALL


@pytest.mark.skipif(len(ALL) == 1, reason="one core is everybody's")
@pytest.mark.parametrize(
    ("instances", "threads", "is_pinned"), [(len(ALL), 1, True), (len(ALL), 2, False), (len(ALL) + 1, 1, False)]
)
def test_a_model_takes_cores_where_its_plan_has_one_thread_for_each(models, monkeypatch, instances, threads, is_pinned):
    """Not where each batch runs on several threads, or a user has asked for more instances than cores."""
    seen = []
    settings = ServerSettings(instances=instances, intra_op_threads=threads)
    monkeypatch.setattr(
        "serving.steps.PictureSteps.prepare", lambda _, job: seen.append(os.sched_getaffinity(0)) or job
    )
    monkeypatch.setattr("serving.steps.PictureSteps.run", lambda _, jobs: jobs)
    busy = Occupancy()
    served = load_model(models / "colours" / "1", settings, metrics=Metrics(), occupancy=busy)
    with busy:
        served.submit([tiny_bundle.picture("red")])[0].result(PATIENCE_S)
    assert served.close(PATIENCE_S)
    assert [len(cores) == 1 and cores <= ALL for cores in seen] == [is_pinned]


def test_a_system_that_forbids_to_give_way_costs_nothing(monkeypatch):
    """A service manager may: threads that die of it would leave a server that says SERVING and answers nobody."""

    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "setpriority", refuse)
    with ThreadPoolExecutor(1, initializer=give_way) as pool:
        assert pool.submit(int, "7").result(PATIENCE_S) == 7
