"""The batcher's promises, without pictures, models or network, and without a sleep."""

import threading
import time
import weakref
from concurrent.futures import CancelledError
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.admission import Admission, BatcherLimits, ByteBudget
from serving.batcher import Batcher
from serving.errors import DeadlineExceededError, NotReadyError, QueueFullError
from serving.observer import Observer
from serving.occupancy import Occupancy
from serving.waiting import without_gone

PATIENCE_S = 20
LIMITS = BatcherLimits(instances=1, prepare_threads=0, run_sizes=(1,), max_batch=1)


class BadItemError(Exception):
    pass


class Gate:
    """An engine that doubles numbers, and holds its batches until it is opened."""

    def __init__(self, *, is_open=False):
        self.opened, self.entered, self.batches = threading.Event(), threading.Semaphore(0), []
        if is_open:
            self.opened.set()

    def run(self, rows):
        self.batches.append(list(rows))
        self.entered.release()
        assert self.opened.wait(PATIENCE_S)
        if any(row % 10 == 9 for row in rows):
            raise BadItemError("batch")
        return [2 * row for row in rows]


def prepare(number):
    if number % 10 == 3:
        raise BadItemError("item")
    return number


class Depths(Observer):
    """Notes how much waits, whenever it hears of it."""

    def __init__(self):
        self.heard = [0]

    def on_queue(self, items):
        self.heard.append(items)


def make(gate, *, clock=lambda: 0.0, observer=None, **limits):
    chosen = {"instances": 1, "prepare_threads": 0, "run_sizes": (1, 2, 4), "max_batch": 4, **limits}
    batcher = Batcher(prepare, gate.run, limits=BatcherLimits(**chosen), clock=clock, observer=observer)
    batcher.start()
    return batcher


def submit(batcher, *numbers, deadline=None, size_bytes=1):
    return batcher.submit(numbers, sizes_bytes=[size_bytes] * len(numbers), deadline=deadline)


@settings(max_examples=60, deadline=None)
@given(
    requests=st.lists(st.tuples(st.lists(st.integers(0, 999), min_size=1, max_size=5), st.booleans()), max_size=25),
    instances=st.integers(1, 3),
    prepare_threads=st.integers(0, 3),
    is_held=st.booleans(),
)
def test_every_item_gets_its_own_answer_exactly_once(requests, instances, prepare_threads, is_held):
    """Whatever arrives, is cancelled or fails: an answer of its own, its failure, or its cancellation.

    The depth that is told is that of the queue, and 0 when all is done.
    """
    gate, depths, answered, lock = Gate(is_open=not is_held), Depths(), [], threading.Lock()
    batcher = make(gate, observer=depths, instances=instances, prepare_threads=prepare_threads)
    pairs = []

    def note(future):
        with lock:
            answered.append(id(future))

    for numbers, is_cancelled in requests:
        futures = submit(batcher, *numbers)
        for number, future in zip(numbers, futures, strict=True):
            future.add_done_callback(note)
            if is_cancelled:
                future.cancel()
            pairs.append((number, future))
    gate.opened.set()
    assert batcher.close(PATIENCE_S)
    for number, future in pairs:
        assert future.done()
        if future.cancelled():
            continue
        error = future.exception()
        if number % 10 == 3:
            assert str(error) == "item"
        elif error is not None:
            assert str(error) == "batch"
            assert any(number in batch and any(row % 10 == 9 for row in batch) for batch in gate.batches)
        else:
            assert future.result() == 2 * number
    assert sorted(answered) == sorted(id(future) for _, future in pairs)
    assert (batcher.queued_items, batcher._admission.size_bytes) == (0, 0)  # the room is given back
    assert depths.heard[-1] == 0
    assert max(depths.heard) >= max((len(numbers) for numbers, _ in requests), default=0)


def test_bad_item_fails_alone():
    """Neighbours of an item that cannot be prepared get their answers."""
    batcher = make(Gate(is_open=True))
    good, bad, other = submit(batcher, 1, 3, 5)
    assert (good.result(PATIENCE_S), other.result(PATIENCE_S)) == (2, 10)
    assert isinstance(bad.exception(PATIENCE_S), BadItemError)
    batcher.close(PATIENCE_S)


def test_cancelled_item_leaves_its_batch():
    """It is not run, and its neighbours still get their answers."""
    gate = Gate()
    batcher = make(gate)
    (first,) = submit(batcher, 1)
    assert gate.entered.acquire(timeout=PATIENCE_S)
    cancelled, kept = submit(batcher, 2, 4)
    assert cancelled.cancel()
    gate.opened.set()
    assert (first.result(PATIENCE_S), kept.result(PATIENCE_S)) == (2, 8)
    with pytest.raises(CancelledError):
        cancelled.result(0)
    batcher.close(PATIENCE_S)
    assert [1] in gate.batches
    assert all(2 not in batch for batch in gate.batches)


@pytest.mark.parametrize("others", [(4,), ()], ids=["beside another", "alone"])
def test_expired_item_is_not_run(others):
    """Its deadline passed while the engine was busy: DeadlineExceededError, and it is not under way for ever."""
    gate, now = Gate(), [0.0]
    batcher = make(gate, clock=lambda: now[0])
    submit(batcher, 1)
    assert gate.entered.acquire(timeout=PATIENCE_S)
    (late,) = submit(batcher, 2, deadline=5.0)
    patient = submit(batcher, *others, deadline=50.0)
    now[0] = 10.0
    gate.opened.set()
    assert isinstance(late.exception(PATIENCE_S), DeadlineExceededError)
    assert [future.result(PATIENCE_S) for future in patient] == [2 * number for number in others]
    assert batcher.close(PATIENCE_S)
    assert all(2 not in batch for batch in gate.batches)
    assert not batcher._admission._under_way


def test_what_becomes_late_while_it_is_prepared_is_not_run():
    """The run is what costs most."""
    gate, now = Gate(is_open=True), [0.0]

    def prepare_slowly(number):
        now[0] += 2.0
        return number

    limits = BatcherLimits(instances=1, prepare_threads=0, run_sizes=(1,), max_batch=1)
    batcher = Batcher(prepare_slowly, gate.run, limits=limits, clock=lambda: now[0])
    batcher.start()
    (late,) = submit(batcher, 1, deadline=1.0)
    assert isinstance(late.exception(PATIENCE_S), DeadlineExceededError)
    assert batcher.close(PATIENCE_S)
    assert gate.batches == []


def test_what_is_late_when_its_turn_comes_in_a_share_is_not_prepared():
    """Those before it take their time: of four items in one share the first two use it up."""
    now, prepared, gate = [0.0], [], Gate(is_open=True)

    def prepare_slowly(number):
        prepared.append(number)
        now[0] += 2.0
        return number

    limits = BatcherLimits(instances=1, prepare_threads=0, run_sizes=(1,), max_batch=4)
    batcher = Batcher(prepare_slowly, gate.run, limits=limits, clock=lambda: now[0])
    futures = batcher.submit([1, 2, 3, 4], sizes_bytes=[1] * 4, deadline=3.0)
    batcher.start()
    errors = [future.exception(PATIENCE_S) for future in futures]
    assert batcher.close(PATIENCE_S)
    assert [type(error) for error in errors] == [type(None), *[DeadlineExceededError] * 3]
    assert prepared == [1, 2]


def test_prepare_threads_do_not_prepare_what_nobody_waits_for():
    """One is late, one was cancelled, while the thread was busy with another: neither is decoded, both are counted."""
    now, prepared, busy, may_go, drops = [0.0], [], threading.Event(), threading.Event(), Depths()
    drops.on_drop = drops.heard.append

    def prepare_one(number):
        prepared.append(number)
        busy.set()
        assert may_go.wait(PATIENCE_S)
        return number

    limits = BatcherLimits(instances=1, prepare_threads=1, run_sizes=(1,), max_batch=1)
    batcher = Batcher(prepare_one, Gate(is_open=True).run, limits=limits, clock=lambda: now[0], observer=drops)
    batcher.start()
    (first,) = submit(batcher, 1)
    assert busy.wait(PATIENCE_S)
    (late,), (unwanted,) = submit(batcher, 2, deadline=5.0), submit(batcher, 4)
    unwanted.cancel()
    now[0] = 6.0
    may_go.set()
    assert first.result(PATIENCE_S) == 2
    assert isinstance(late.exception(PATIENCE_S), DeadlineExceededError)
    assert batcher.close(PATIENCE_S)
    assert prepared == [1]
    assert [word for word in drops.heard if isinstance(word, str)] == ["deadline", "cancelled"]


def test_what_is_under_way_counts_for_a_deadline_until_it_is_done():
    """Four of a second each run and one waits; then come two that are answered together. Later less is left."""
    gate, now = Gate(), [0.0]
    batcher = make(gate, clock=lambda: now[0], max_wait_ms=1e9)
    batcher._admission.note_pace(1.0)
    submit(batcher, 1, 2, 4, 5)
    assert gate.entered.acquire(timeout=PATIENCE_S)
    (waiting,) = submit(batcher, 6)
    with pytest.raises(DeadlineExceededError, match="1 items wait, an answer would take about 7700 ms"):
        submit(batcher, 8, deadline=7.6)
    now[0] = 3.0
    with pytest.raises(DeadlineExceededError, match="1 items wait, an answer would take about 4400 ms"):
        submit(batcher, 8, deadline=7.3)
    (admitted,) = submit(batcher, 8, deadline=7.5)
    gate.opened.set()
    assert batcher.close(PATIENCE_S)
    assert (waiting.result(0), admitted.result(0), batcher._admission._under_way) == (12, 16, [])


@pytest.mark.parametrize(("limits", "size_bytes"), [({"max_queue_items": 3}, 1), ({"max_queue_bytes": 30}, 10)])
def test_full_queue_admits_all_or_none(limits, size_bytes):
    """A request that does not fit as a whole is refused as a whole."""
    gate = Gate()
    batcher = make(gate, **limits)
    submit(batcher, 1, size_bytes=0)
    assert gate.entered.acquire(timeout=PATIENCE_S)
    waiting = submit(batcher, 2, 4, size_bytes=size_bytes)
    with pytest.raises(QueueFullError, match="try again later"):
        submit(batcher, 6, 8, size_bytes=size_bytes)
    (fits,) = submit(batcher, 10, size_bytes=size_bytes)
    gate.opened.set()
    assert [future.result(PATIENCE_S) for future in (*waiting, fits)] == [4, 8, 20]
    batcher.close(PATIENCE_S)


def test_two_idle_instances_share_two_items():
    """No batch goes to one instance while another idles."""
    gate, both_prepared = Gate(), threading.Barrier(2, timeout=PATIENCE_S)

    def prepare_together(number):
        both_prepared.wait()
        return number

    limits = BatcherLimits(instances=2, prepare_threads=2, run_sizes=(1, 2, 4), max_batch=4)
    batcher = Batcher(prepare_together, gate.run, limits=limits)
    batcher.start()
    futures = submit(batcher, 1, 2)
    assert gate.entered.acquire(timeout=PATIENCE_S)
    assert gate.entered.acquire(timeout=PATIENCE_S)
    gate.opened.set()
    assert [future.result(PATIENCE_S) for future in futures] == [2, 4]
    assert sorted(gate.batches) == [[1], [2]]
    batcher.close(PATIENCE_S)


def lone_batcher(gate, lone, occupancy):
    """Two instances, and an engine for items that have the cores to themselves."""
    limits = BatcherLimits(instances=2, prepare_threads=0, run_sizes=(1, 2, 4), max_batch=4)
    batcher = Batcher(prepare, gate.run, limits=limits, run_lone=lone.run, occupancy=occupancy)
    batcher.start()
    return batcher


def test_an_item_beside_which_nothing_runs_has_the_cores_to_itself():
    """One that joins it has not, nor the next alone, for two callers in turn are alone in between; then again."""
    gate, lone = Gate(), Gate()
    batcher = lone_batcher(gate, lone, Occupancy())
    (first,) = submit(batcher, 1)
    assert lone.entered.acquire(timeout=PATIENCE_S)
    (second,) = submit(batcher, 2)
    assert gate.entered.acquire(timeout=PATIENCE_S)
    gate.opened.set()
    lone.opened.set()
    assert (first.result(PATIENCE_S), second.result(PATIENCE_S)) == (2, 4)
    for number in (4, 5, 6):
        assert submit(batcher, number)[0].result(PATIENCE_S) == 2 * number
    assert batcher.close(PATIENCE_S)
    assert (gate.batches, lone.batches) == ([[2], [4]], [[1], [5], [6]])


def test_what_another_model_runs_counts_too():
    """They share the cores."""
    occupancy, gate, lone, other = Occupancy(), Gate(is_open=True), Gate(is_open=True), Gate()
    busy, batcher = lone_batcher(other, other, occupancy), lone_batcher(gate, lone, occupancy)
    (held,) = submit(busy, 1)
    assert other.entered.acquire(timeout=PATIENCE_S)
    assert submit(batcher, 2)[0].result(PATIENCE_S) == 4
    other.opened.set()
    assert held.result(PATIENCE_S) == 2
    assert busy.close(PATIENCE_S)
    assert batcher.close(PATIENCE_S)
    assert (gate.batches, lone.batches) == ([[2]], [])


def test_an_item_behind_which_others_wait_has_not_the_cores_to_itself():
    """While it was prepared another one came."""
    gate, lone, is_preparing, may_go = Gate(is_open=True), Gate(is_open=True), threading.Event(), threading.Event()

    def prepare_slowly(number):
        is_preparing.set()
        assert may_go.wait(PATIENCE_S)
        return number

    limits = BatcherLimits(instances=1, prepare_threads=0, run_sizes=(1, 2, 4), max_batch=4)
    batcher = Batcher(prepare_slowly, gate.run, limits=limits, run_lone=lone.run)
    batcher.start()
    (first,) = submit(batcher, 1)
    assert is_preparing.wait(PATIENCE_S)
    (second,) = submit(batcher, 2)
    may_go.set()
    assert (first.result(PATIENCE_S), second.result(PATIENCE_S)) == (2, 4)
    assert batcher.close(PATIENCE_S)
    assert (gate.batches, lone.batches) == ([[1]], [[2]])


def test_lone_items_tell_how_long_a_queue_may_take():
    """Until a batch does: after one of half a second, six that wait are three seconds, and one is allowed."""
    gate, now = Gate(), [0.0]

    def run_lone(rows):
        now[0] += 0.5
        return [2 * row for row in rows]

    limits = BatcherLimits(instances=1, prepare_threads=0, run_sizes=(1, 2, 4), max_batch=4)
    batcher = Batcher(prepare, gate.run, limits=limits, clock=lambda: now[0], run_lone=run_lone)
    batcher.start()
    assert submit(batcher, 1)[0].result(PATIENCE_S) == 2
    while not batcher._admission._pace_s:  # noted after the answer
        threading.Event().wait(0.001)
    waiting = submit(batcher, *[2] * 10)
    assert gate.entered.acquire(timeout=PATIENCE_S)
    with pytest.raises(QueueFullError, match="6 items wait, for about 3000 ms"):
        submit(batcher, 4)
    gate.opened.set()
    assert [future.result(PATIENCE_S) for future in waiting] == [4] * 10
    assert batcher.close(PATIENCE_S)


def timed(gate, now, *, prepare_s, run_s=0.0, **limits):
    """A batcher whose clock moves by so much for every item that is prepared, and for every batch."""

    def prepare_slowly(number):
        now[0] += prepare_s[0]
        return number

    def run(rows):
        now[0] += run_s * len(rows)
        return gate.run(rows)

    chosen = {"instances": 1, "prepare_threads": 0, "run_sizes": (1, 2, 4), "max_batch": 4, **limits}
    batcher = Batcher(prepare_slowly, run, limits=BatcherLimits(**chosen), clock=lambda: now[0])
    batcher.start()
    return batcher


def test_a_queue_moves_at_the_pace_of_its_prepare_threads_where_they_are_the_slower_ones():
    """Two threads, half a second an item: six that wait take a second and a half; that is too long for one more."""
    now = [0.0]
    batcher = timed(Gate(is_open=True), now, prepare_s=[0.5], prepare_threads=2)
    assert submit(batcher, 1)[0].result(PATIENCE_S) == 2
    assert batcher.close(PATIENCE_S)
    admission = batcher._admission
    admission.enter(3, 3, now=0.0)
    with pytest.raises(DeadlineExceededError, match="3 items wait, an answer would take about 1100 ms"):
        admission.check(1, 1, now=0.0, deadline=1.05)
    admission.enter(3, 3, now=0.0, deadline=1.7)
    with pytest.raises(QueueFullError, match="6 items wait, for about 1500 ms"):
        admission.check(1, 1, now=0.0)


def test_the_pace_is_that_of_an_item_and_not_of_a_batch():
    """A batch of four in two seconds: half a second each."""
    now, gate = [0.0], Gate(is_open=True)
    batcher = timed(gate, now, prepare_s=[0.0], run_s=0.5, max_wait_ms=1.0, run_sizes=(4,))
    futures = submit(batcher, 1, 1, 1, 1)
    assert [future.result(PATIENCE_S) for future in futures] == [2] * 4
    assert batcher.close(PATIENCE_S)
    assert gate.batches == [[1] * 4]
    assert batcher._admission._pace_s == 0.5


def test_work_that_is_too_late_once_it_is_prepared_tells_the_pace_too():
    """Else hopeless work would be let in, prepared and thrown away for as long as it comes."""
    now, prepare_s = [0.0], [0.001]
    batcher = timed(Gate(is_open=True), now, prepare_s=prepare_s)
    assert submit(batcher, 1)[0].result(PATIENCE_S) == 2
    prepare_s[0] = 5.0
    (late,) = submit(batcher, 2, deadline=now[0] + 1)
    assert isinstance(late.exception(PATIENCE_S), DeadlineExceededError)
    assert batcher.close(PATIENCE_S)
    assert batcher._admission._pace_s > 0.4


@pytest.mark.parametrize("prepare_threads", [0, 1])
def test_what_fails_slowly_tells_the_pace_and_what_fails_at_once_does_not(prepare_threads):
    """Half a second each: else damaged pictures would be let in without end."""
    now, takes_s = [0.0], [0.0]

    def fail(_):
        now[0] += takes_s[0]
        raise BadItemError("item")

    limits = BatcherLimits(instances=1, prepare_threads=prepare_threads, run_sizes=(1,), max_batch=1)
    batcher = Batcher(fail, Gate().run, limits=limits, clock=lambda: now[0])
    batcher.start()
    for takes_s[0] in (0.5, 0.001):
        (bad,) = submit(batcher, 1)
        assert isinstance(bad.exception(PATIENCE_S), BadItemError)
    assert batcher.close(PATIENCE_S)
    batcher._admission.enter(3, 3, now=0.0)
    with pytest.raises(QueueFullError, match="3 items wait, for about 1500 ms"):
        batcher._admission.check(1, 1, now=0.0)


def test_a_run_that_fails_slowly_tells_the_pace_too():
    """A batch that raises after a second."""
    now = [0.0]
    batcher = timed(Gate(is_open=True), now, prepare_s=[0.0], run_s=1.0)
    assert isinstance(submit(batcher, 9)[0].exception(PATIENCE_S), BadItemError)
    assert batcher.close(PATIENCE_S)
    assert batcher._admission._pace_s == 1.0


class Picture:
    """Something of which can be asked whether it is still there."""


@pytest.mark.parametrize("prepare_threads", [0, 1])
def test_an_idle_batcher_keeps_no_picture(prepare_threads):
    """Those of its last batch may be many megabytes, and the next may never come."""
    limits = BatcherLimits(instances=1, prepare_threads=prepare_threads, run_sizes=(1,), max_batch=8)
    batcher = Batcher(lambda item: item, lambda rows: [None] * len(rows), limits=limits)
    batcher.start()
    pictures = [Picture() for _ in range(9)]
    left = [weakref.ref(picture) for picture in pictures]
    for future in submit(batcher, *pictures):
        future.result(PATIENCE_S)
    del pictures, future
    until = time.monotonic() + PATIENCE_S
    while any(one() for one in left) and time.monotonic() < until:
        threading.Event().wait(0.001)  # a thread lets go after its answer
    assert [one() for one in left] == [None] * 9
    assert batcher.close(PATIENCE_S)


@pytest.mark.parametrize(
    ("paces", "wait_ms"), [([(0.5, True)], 500), ([(0.5, True), (0.9, False)], 900), ([(0.9, False), (0.5, True)], 900)]
)
def test_a_guessed_pace_gives_way_to_a_known_one(paces, wait_ms):
    """A lone run has every core; it says nothing once a batch beside others was timed."""
    admission = Admission(BatcherLimits(instances=1, prepare_threads=0, run_sizes=(1,), max_batch=1, max_queue_ms=100))
    for seconds, is_guess in paces:
        admission.note_pace(seconds, is_guess=is_guess)
    admission.enter(1, 0, now=0.0)
    with pytest.raises(QueueFullError, match=f"for about {wait_ms} ms"):
        admission.check(1, 0, now=0.0)


def test_items_that_queued_while_busy_leave_as_one_batch():
    """A window holds them back until the largest run is full."""
    gate = Gate(is_open=True)
    batcher = make(gate, max_wait_ms=1e9)
    futures = submit(batcher, 1, 2, 4, 5)
    assert [future.result(PATIENCE_S) for future in futures] == [2, 4, 8, 10]
    assert gate.batches == [[1, 2, 4, 5]]
    batcher.close(PATIENCE_S)


def test_close_finishes_the_queue_and_accepts_nothing_more():
    """What was admitted is answered; what comes later is refused."""
    batcher = make(Gate(is_open=True))
    futures = submit(batcher, 1, 2, 4)
    assert batcher.close(PATIENCE_S)
    assert [future.result(0) for future in futures] == [2, 4, 8]
    with pytest.raises(NotReadyError):
        submit(batcher, 1)


def test_close_that_runs_out_of_time_fails_what_is_left():
    """Nobody waits for ever for an answer that will not come."""
    gate = Gate()
    batcher = make(gate)
    submit(batcher, 1)
    assert gate.entered.acquire(timeout=PATIENCE_S)
    (left,) = submit(batcher, 2)
    assert not batcher.close(0.0)
    assert isinstance(left.exception(PATIENCE_S), NotReadyError)
    gate.opened.set()


@pytest.mark.parametrize("prepare_threads", [0, 1])
def test_who_has_gone_keeps_nobody_out(prepare_threads):
    """Of a full queue the cancelled are counted out at once, not when an instance next takes from it."""
    gate, dropped = Gate(), []

    class Ear(Depths):
        def on_drop(self, reason):
            dropped.append(reason)

    ear = Ear()
    batcher = make(gate, observer=ear, max_queue_items=3, max_batch=1, run_sizes=(1,), prepare_threads=prepare_threads)
    try:
        running = submit(batcher, 0)
        assert gate.entered.acquire(timeout=PATIENCE_S)
        waiting = submit(batcher, 1, 2, 4)
        with pytest.raises(QueueFullError):
            batcher.check_room()
        for future in waiting[:2]:
            assert future.cancel()
        batcher.check_room()
        assert (batcher.queued_items, ear.heard[-1], dropped) == (1, 1, ["cancelled"] * 2)
        waiting[2].cancel()
        more = submit(batcher, 5, 6, 7)
        assert batcher.queued_items == 3
        gate.opened.set()
        assert [future.result(PATIENCE_S) for future in (*running, *more)] == [0, 10, 12, 14]
    finally:
        gate.opened.set()
        assert batcher.close(PATIENCE_S)
    assert (batcher.queued_items, len(gate.batches)) == (0, 4)


def test_queues_share_what_may_wait_and_give_all_of_it_back():
    """What one of two models has queued is not there for the other; a close gives it back too."""
    gate, occupancy = Gate(), Occupancy(encoded_bytes=10)
    limits = BatcherLimits(instances=1, prepare_threads=0, run_sizes=(1,), max_batch=1)
    first, second = (Batcher(prepare, gate.run, limits=limits, occupancy=occupancy) for _ in range(2))
    first.start()
    submit(first, 1, size_bytes=6)
    assert gate.entered.acquire(timeout=PATIENCE_S)  # taken, and its room is free again
    submit(first, 2, size_bytes=6)
    with pytest.raises(QueueFullError, match="6 bytes wait for all models, at most 10 may"):
        submit(second, 1, size_bytes=5)
    submit(second, 1, size_bytes=4)
    with pytest.raises(QueueFullError, match="10 bytes wait for all models"):
        second.check_room()  # for one more of the usual size
    gate.opened.set()
    assert first.close(PATIENCE_S)
    assert not second.close(0)
    assert occupancy.encoded.used_bytes == 0


def test_how_long_an_item_would_wait_is_told_by_many_and_shared_by_all():
    """One odd batch in ten weighs a tenth; two instances halve it; the refusal says by how much it is too long."""
    admission = Admission(replace(LIMITS, instances=2, max_queue_ms=900))
    admission.note_pace(0.1)
    admission.note_pace(1.1)  # 0.2 s an item
    admission.enter(10, 0, now=0.0)
    with pytest.raises(QueueFullError, match="10 items wait, for about 1000 ms, at most 900") as caught:
        admission.check(1, 0, now=0.0)
    assert caught.value.retry_after_s == pytest.approx(0.1)


def test_an_answer_must_be_in_time_for_the_last_item_of_a_request():
    """One more may be, and not five."""
    admission = Admission(LIMITS)
    admission.note_pace(0.1)
    admission.enter(1, 0, now=0.0)
    admission.check(1, 0, now=0.0, deadline=0.4)
    with pytest.raises(DeadlineExceededError):
        admission.check(5, 0, now=0.0, deadline=0.4)


def test_what_is_too_much_takes_nothing():
    """Neither in all nor, where another queue is faster, after a look that found room."""
    budget = ByteBudget(10)
    assert not budget.take(11)
    assert budget.used_bytes == 0

    class Late(ByteBudget):
        def has_room(self, size_bytes):
            return True

        def take(self, size_bytes):
            return False

    admission = Admission(LIMITS, Late(10))
    with pytest.raises(QueueFullError):
        admission.enter(1, 5, now=0.0)
    assert admission.items == 0


def test_a_close_waits_for_what_is_being_prepared():
    """An instance that has nothing to do does not leave before it."""
    gate, prepares, may_go_on = Gate(is_open=True), threading.Event(), threading.Event()

    def slow(number):
        prepares.set()
        assert may_go_on.wait(PATIENCE_S)
        return number

    batcher = Batcher(slow, gate.run, limits=replace(LIMITS, prepare_threads=1))
    batcher.start()
    (future,) = submit(batcher, 4)
    assert prepares.wait(PATIENCE_S)
    closed = []
    closing = threading.Thread(target=lambda: closed.append(batcher.close(PATIENCE_S)))
    closing.start()
    (instance,) = (thread for thread in threading.enumerate() if thread.name == "run")
    instance.join(0.1)  # in which it could leave
    may_go_on.set()
    closing.join()
    assert (closed, future.result(0)) == ([True], 8)


def test_a_close_that_is_not_waited_for_long_enough_says_so():
    """Also where nothing waits any more: a batch still runs."""
    gate = Gate()
    batcher = make(gate)
    (future,) = submit(batcher, 4)
    assert gate.entered.acquire(timeout=PATIENCE_S)
    assert not batcher.close(0.05)
    gate.opened.set()
    assert (future.result(PATIENCE_S), batcher.close(PATIENCE_S)) == (8, True)


def test_refusals_look_for_callers_that_have_gone_only_where_one_has(monkeypatch):
    """Under overload there are hundreds a second, and each would look at all that waits."""
    looks = []
    monkeypatch.setattr("serving.preparation.without_gone", lambda *given: (looks.append(1), without_gone(*given))[1])
    gate = Gate()
    batcher = make(gate, max_queue_items=2, max_batch=1, run_sizes=(1,))
    try:
        submit(batcher, 0)
        assert gate.entered.acquire(timeout=PATIENCE_S)
        waiting = submit(batcher, 1, 2)
        for _ in range(3):
            with pytest.raises(QueueFullError):
                batcher.check_room()
        assert not looks
        waiting[0].cancel()
        batcher.check_room()
        submit(batcher, 4)
        for _ in range(3):
            with pytest.raises(QueueFullError):
                batcher.check_room()
        assert len(looks) == 1
    finally:
        gate.opened.set()
        batcher.close(PATIENCE_S)


def test_a_start_without_enough_threads_leaves_none_behind(monkeypatch):
    """Each would hold the session for ever."""
    start, begun = threading.Thread.start, []

    def start_two(thread):
        if len(begun) == 2:
            raise RuntimeError("can't start new thread")
        begun.append(thread)
        start(thread)

    batcher = Batcher(
        prepare,
        Gate().run,
        limits=BatcherLimits(instances=3, prepare_threads=1, run_sizes=(1,), max_batch=1),
    )
    monkeypatch.setattr(threading.Thread, "start", start_two)
    with pytest.raises(RuntimeError, match="new thread"):
        batcher.start()
    assert [thread.is_alive() for thread in begun] == [False, False]


def test_a_lone_item_does_not_tell_the_pace_of_batches():
    """It had every core: once a batch is known to take a second an item, a lone tenth of one says nothing."""
    now = [0.0]

    def takes(seconds):
        def run(rows):
            now[0] += seconds * len(rows)
            return [2 * row for row in rows]

        return run

    limits = BatcherLimits(instances=1, prepare_threads=0, run_sizes=(1, 2, 4), max_batch=4)
    batcher = Batcher(prepare, takes(1.0), limits=limits, clock=lambda: now[0], run_lone=takes(0.1))
    batcher._admission.note_pace(1.0)
    batcher.start()
    for _ in range(3):
        submit(batcher, 1)[0].result(PATIENCE_S)
        now[0] += 1.0
    assert batcher.close(PATIENCE_S)
    assert batcher._admission._pace_s == 1.0


@pytest.mark.parametrize("answers", [[], [2, 4, 8]])
def test_a_run_that_answers_fewer_or_more_than_it_was_asked_fails_its_items_alone(answers):
    """Else their callers would wait for ever, and the instance be gone."""
    runs = iter([lambda _: answers, Gate(is_open=True).run])
    limits = BatcherLimits(instances=1, prepare_threads=0, run_sizes=(1, 2), max_batch=2)
    batcher = Batcher(prepare, lambda rows: next(runs)(rows), limits=limits)
    batcher.start()
    for future in submit(batcher, 1, 2):
        assert isinstance(future.exception(PATIENCE_S), RuntimeError)
    assert submit(batcher, 4)[0].result(PATIENCE_S) == 8
    assert batcher.close(PATIENCE_S)


def test_what_fails_among_others_tells_no_slower_pace():
    """Two of half a second, of which one is bad: half a second an item, not one."""
    now = [0.0]
    batcher = timed(Gate(is_open=True), now, prepare_s=[0.0], max_wait_ms=1.0, run_sizes=(2,), max_batch=2)
    batcher._prepare = lambda number: (now.__setitem__(0, now[0] + 0.5), prepare(number))[1]
    good, _ = submit(batcher, 1, 3)
    assert good.result(PATIENCE_S) == 2
    assert batcher.close(PATIENCE_S)
    assert batcher._admission._pace_s == 0.5


def test_the_wait_that_is_told_is_without_the_preparation():
    """Two seconds of decoding in a thread of its own are no wait in a queue."""
    now, waits = [0.0], []

    class Ear(Observer):
        def on_wait(self, seconds):
            waits.append(seconds)

    def prepare_slowly(number):
        now[0] += 2.0
        return number

    limits = BatcherLimits(instances=1, prepare_threads=1, run_sizes=(1,), max_batch=1)
    batcher = Batcher(prepare_slowly, Gate(is_open=True).run, limits=limits, clock=lambda: now[0], observer=Ear())
    batcher.start()
    assert submit(batcher, 1)[0].result(PATIENCE_S) == 2
    assert batcher.close(PATIENCE_S)
    assert waits == [0.0]


@pytest.mark.parametrize("prepare_threads", [0, 1])
def test_what_is_late_and_cancelled_too_ends_no_thread(prepare_threads):
    """As every call that gRPC ends at its deadline: the instance goes on answering."""
    gate, now = Gate(), [0.0]
    batcher = make(gate, clock=lambda: now[0], prepare_threads=prepare_threads, run_sizes=(1,), max_batch=1)
    submit(batcher, 1)
    assert gate.entered.acquire(timeout=PATIENCE_S)
    (gone,) = submit(batcher, 2, deadline=5.0)
    while prepare_threads and not len(batcher._ready):
        threading.Event().wait(0.001)
    assert gone.cancel()
    now[0] = 10.0
    gate.opened.set()
    assert submit(batcher, 4)[0].result(PATIENCE_S) == 8
    assert batcher.close(PATIENCE_S)


def test_a_close_fails_no_item_that_is_cancelled():
    """The close itself would fail, and the models after it stay open."""
    gate = Gate()
    batcher = make(gate)
    submit(batcher, 1)
    assert gate.entered.acquire(timeout=PATIENCE_S)
    gone, left = submit(batcher, 2, 4)
    assert gone.cancel()
    assert not batcher.close(0.0)
    assert isinstance(left.exception(PATIENCE_S), NotReadyError)
    gate.opened.set()
    assert batcher.close(PATIENCE_S)
