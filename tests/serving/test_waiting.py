"""Who takes how much of what waits, by hypothesis: nothing is lost, nothing late is run, sizes are the warmed ones."""

from concurrent.futures import Future

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.admission import BatcherLimits
from serving.ticket import Ticket
from serving.waiting import Item, Waiting

NOW = 100.0
FATES = st.sampled_from(["in time", "late", "cancelled"])


def waiting_items(fates: list[str], sizes: tuple[int, ...]) -> tuple[Waiting[str, str], list[Ticket[str]]]:
    waiting: Waiting[str, str] = Waiting(BatcherLimits(instances=1, prepare_threads=0, batch_sizes=sizes))
    tickets = []
    for fate in fates:
        deadline = NOW - 1 if fate == "late" else NOW + 1
        ticket: Ticket[str] = Ticket(future=Future(), size_bytes=1, deadline=deadline, admitted=NOW - 2)
        if fate == "cancelled":
            ticket.future.cancel()
        tickets.append(ticket)
        waiting.append(Item(ticket, str, NOW - 2))
    return waiting, tickets


@given(st.lists(FATES, min_size=1, max_size=40), st.integers(1, 5), st.sampled_from([(1,), (1, 2), (1, 2, 4), (1, 3)]))
def test_shares_hand_out_every_item_once_in_order_and_run_only_those_in_time(
    fates: list[str], idle: int, sizes: tuple[int, ...]
) -> None:
    waiting, tickets = waiting_items(fates, sizes)
    ran, taken = [], []
    while waiting:
        share = waiting.take(idle=idle, now=NOW)
        assert len(share.live) <= sizes[-1]
        ran += [item.ticket for item in share.live]
        taken += share.tickets()
        assert all(ticket.future.running() for ticket in (item.ticket for item in share.live))
    assert ran == [ticket for ticket, fate in zip(tickets, fates, strict=True) if fate == "in time"]
    assert sorted(map(id, taken)) == sorted(map(id, tickets))


@given(st.integers(1, 40), st.integers(1, 5))
def test_an_idle_instance_takes_no_more_than_its_even_share_rounded_up(count: int, idle: int) -> None:
    waiting, _ = waiting_items(["in time"] * count, (1, 2, 4))
    assert len(waiting.take(idle=idle, now=NOW).live) <= -(-count // idle)


def test_a_share_says_why_it_is_no_larger() -> None:
    waiting, _ = waiting_items(["in time"] * 7, (1, 2, 4))
    assert [waiting.take(idle=idle, now=NOW).closing for idle in (1, 2, 1)] == ["full", "shared", "drained"]


def test_company_is_waited_for_until_the_window_ends_or_a_batch_is_full() -> None:
    """A window of 5 ms, of which 2 are gone; then all; then none is needed."""
    limits = BatcherLimits(instances=1, prepare_threads=0, batch_sizes=(1, 2), max_wait_ms=5)
    waiting: Waiting[str, str] = Waiting(limits)
    ticket: Ticket[str] = Ticket(future=Future(), size_bytes=1, deadline=None, admitted=NOW)
    waiting.append(Item(ticket, str, NOW))
    assert waiting.window_s(NOW + 0.002) == pytest.approx(0.003)
    assert waiting.window_s(NOW + 0.006) < 0
    waiting.append(Item(ticket, str, NOW))
    assert waiting.window_s(NOW) == 0


def test_whatever_is_drained_is_gone() -> None:
    waiting, tickets = waiting_items(["in time", "late"], (1,))
    assert waiting.drain() == tickets
    assert not waiting
