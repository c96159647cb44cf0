"""Who takes how much of what waits, by hypothesis: nothing is lost, nothing late is run, none is left idle."""

from concurrent.futures import Future
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.admission import Admission, BatcherLimits
from serving.errors import DeadlineExceededError
from serving.ticket import Ticket
from serving.waiting import Item, Share, Waiting

NOW = 100.0
SIZES = st.sampled_from([(1,), (1, 2), (1, 2, 4), (1, 3)])
FATES = st.sampled_from(["in time", "late", "cancelled"])


def waiting_items(
    fates: list[str], sizes: tuple[int, ...], *, max_batch: int = 0, instances: int = 1
) -> tuple[Waiting[str, str], list[Ticket[str]]]:
    limits = BatcherLimits(instances=instances, prepare_threads=0, run_sizes=sizes, max_batch=max_batch or sizes[-1])
    waiting: Waiting[str, str] = Waiting(limits)
    tickets = []
    for fate in fates:
        deadline = NOW - 1 if fate == "late" else NOW + 1
        ticket: Ticket[str] = Ticket(future=Future(), size_bytes=1, deadline=deadline, admitted=NOW - 2)
        if fate == "cancelled":
            ticket.future.cancel()
        tickets.append(ticket)
        waiting.append(Item(ticket, str, NOW - 2))
    return waiting, tickets


@pytest.mark.parametrize(
    ("deadlines_s", "window_s"), [((None,), 0.5), ((9.0,), 0.5), ((0.3,), 0.15), ((None, 0.2), 0.1)]
)
def test_no_item_waits_for_company_longer_than_half_of_its_time(deadlines_s, window_s):
    """The deadline drives the window too, whoever was first."""
    limits = BatcherLimits(instances=1, prepare_threads=0, run_sizes=(1, 2, 4), max_batch=4, max_wait_ms=500)
    waiting: Waiting[str, str] = Waiting(limits)
    for left_s in deadlines_s:
        deadline = None if left_s is None else NOW + left_s
        waiting.append(Item(Ticket(future=Future(), size_bytes=1, deadline=deadline, admitted=NOW), str, NOW))
    assert waiting.window_s(NOW) == pytest.approx(window_s)


@given(
    fates=st.lists(FATES, min_size=1, max_size=40),
    sizes=SIZES,
    runs=st.integers(1, 4),
    instances=st.integers(1, 5),
    idle=st.integers(1, 5),
)
def test_shares_hand_out_every_item_once_in_order_and_run_only_those_in_time(
    fates: list[str], sizes: tuple[int, ...], runs: int, instances: int, idle: int
) -> None:
    max_batch = runs * sizes[-1]
    waiting, tickets = waiting_items(fates, sizes, max_batch=max_batch, instances=instances)
    ran, taken = [], []
    while waiting:
        share = waiting.take(idle=min(idle, instances), now=NOW)
        assert len(share.live) <= max_batch
        ran += [item.ticket for item in share.live]
        taken += share.tickets()
        assert all(ticket.future.running() for ticket in (item.ticket for item in share.live))
    assert ran == [ticket for ticket, fate in zip(tickets, fates, strict=True) if fate == "in time"]
    assert sorted(map(id, taken)) == sorted(map(id, tickets))


def share_of(count: int, *, idle: int, instances: int = 2, sizes: tuple[int, ...] = (1, 2), max_batch: int = 8) -> int:
    """How many of so many waiting items one instance takes."""
    waiting, _ = waiting_items(["in time"] * count, sizes, max_batch=max_batch, instances=instances)
    return len(waiting.take(idle=idle, now=NOW).live)


@given(st.integers(1, 40), st.integers(1, 5), SIZES)
def test_idle_instances_share_evenly(count: int, instances: int, sizes: tuple[int, ...]) -> None:
    """None takes what would leave nothing for another."""
    taken = share_of(count, idle=instances, instances=instances, sizes=sizes)
    assert taken <= -(-count // instances)


@pytest.mark.parametrize(("count", "taken"), [(1, 1), (2, 2), (3, 2), (4, 2), (6, 3), (10, 5), (16, 8), (40, 8)])
def test_an_instance_leaves_their_part_to_those_at_work_but_fills_a_run(count: int, taken: int) -> None:
    """Two instances, of which one is at work and will come again."""
    assert share_of(count, idle=1) == taken


@pytest.mark.parametrize(("count", "taken"), [(1, 1), (3, 2), (7, 4), (31, 16), (32, 32), (40, 32)])
def test_what_fills_no_run_is_cut_to_a_warmed_size(count: int, taken: int) -> None:
    """As on a GPU: the rest comes with what arrives meanwhile."""
    assert share_of(count, idle=1, instances=1, sizes=(1, 2, 4, 8, 16, 32), max_batch=32) == taken


def test_a_share_says_why_it_is_no_larger() -> None:
    waiting, _ = waiting_items(["in time"] * 7, (1, 2, 4), instances=2)
    assert [waiting.take(idle=idle, now=NOW).closing for idle in (1, 2, 1)] == ["full", "shared", "drained"]


def test_company_is_waited_for_until_the_window_ends_or_a_batch_is_full() -> None:
    """A window of 5 ms, of which 2 are gone; then all; then none is needed."""
    limits = BatcherLimits(instances=1, prepare_threads=0, run_sizes=(1, 2), max_batch=2, max_wait_ms=5)
    waiting: Waiting[str, str] = Waiting(limits)
    ticket: Ticket[str] = Ticket(future=Future(), size_bytes=1, deadline=None, admitted=NOW)
    waiting.append(Item(ticket, str, NOW))
    assert waiting.window_s(NOW + 0.002) == pytest.approx(0.003)
    assert waiting.window_s(NOW + 0.006) < 0
    waiting.append(Item(ticket, str, NOW))
    assert waiting.window_s(NOW) == 0


def end_of(share: Share[str, str]) -> float:
    """When a batch is done that takes a second an item."""
    return share.taken + len(share.live)


def answered_in_time(deadline_s: float, *, load: float, instances: int = 2, sizes: tuple[int, ...] = (1, 2)) -> float:
    """Play instances that take 1 s an item at `load` times their capacity; of what they could do, what was in time.

    Evenly spaced arrivals, each with this deadline; no thread, and a clock that jumps from event to event.
    """
    limits = BatcherLimits(
        instances=instances, prepare_threads=0, run_sizes=sizes, max_batch=8, max_queue_items=10_000, max_queue_ms=1e9
    )
    waiting, admission = Waiting[str, str](limits), Admission(limits)
    admission.note_pace(1.0)
    seconds, every_s, arrival, in_time = 400.0, 1 / (load * limits.instances), 0.0, 0
    running: list[Share[str, str]] = []  # one item a second
    while (now := min([arrival, *map(end_of, running)] if waiting else [arrival])) < seconds:
        for share in [share for share in running if end_of(share) <= now]:
            running.remove(share)
            admission.end(len(share.live), begun=share.taken)
            in_time += sum(not item.ticket.is_late(end_of(share)) for item in share.live)
        if now == arrival:
            arrival += every_s
            with suppress(DeadlineExceededError):
                admission.enter(1, 0, now=now, deadline=now + deadline_s)
                ticket: Ticket[str] = Ticket(future=Future(), size_bytes=0, deadline=now + deadline_s, admitted=now)
                waiting.append(Item(ticket, str, now))
        while waiting and (idle := limits.instances - len(running)):
            share = waiting.take(idle=idle, now=now)
            for ticket in share.tickets():
                admission.leave(ticket.size_bytes)
            if share.live:
                admission.begin(len(share.live), now=now)
                running.append(share)
    return in_time / (limits.instances * seconds)


@pytest.mark.parametrize("deadline_s", [5, 6, 8, 16, 30, 100])
@pytest.mark.parametrize("load", [1.1, 2, 5])
@pytest.mark.parametrize(("instances", "sizes"), [(2, (1, 2)), (2, (1, 2, 4)), (8, (1, 2, 4))])
def test_under_overload_what_is_admitted_is_answered_in_time(
    deadline_s: float, load: float, instances: int, sizes: tuple[int, ...]
) -> None:
    """With five times an item's time and more: else the instances work on what nobody waits for any more."""
    assert answered_in_time(deadline_s, load=load, instances=instances, sizes=sizes) > 0.9


def test_a_batch_that_takes_longer_does_not_hide_what_is_left_of_another() -> None:
    """One of 8 is overdue by 9.2 s, one of 8 has just begun: 0.7 s are left on one of two instances."""
    admission = Admission(BatcherLimits(instances=2, prepare_threads=0, run_sizes=(1,), max_batch=8))
    admission.note_pace(0.1)
    admission.begin(8, now=0.0)
    admission.begin(8, now=9.9)
    admission.enter(1, 0, now=10.0)
    with pytest.raises(DeadlineExceededError, match="an answer would take about 550 ms"):
        admission.enter(1, 0, now=10.0, deadline=10.5)


def test_whatever_is_drained_is_gone() -> None:
    waiting, tickets = waiting_items(["in time", "late"], (1,))
    assert waiting.drain() == tickets
    assert not waiting


def test_a_batch_that_expiry_left_small_is_not_called_full():
    """One of eight is in time."""
    waiting, _ = waiting_items(["late"] * 7 + ["in time"], (1, 2, 4), max_batch=8)
    share = waiting.take(idle=1, now=NOW)
    assert (len(share.live), len(share.expired), share.closing) == (1, 7, "drained")
