"""Candidates on live traffic: what they say is counted, what they do never reaches a caller."""

import threading
import time
from concurrent.futures import Future

import numpy as np
import pytest
import tiny_bundle
from running import LIMIT_S, Running, classify, load, plain_channel, until, with_runs
from structlog.testing import capture_logs

from bundle.contract import Contract, PreprocessSpec
from bundle.errors import CorruptImageError
from serving.errors import QueueFullError
from serving.loading import load_model
from serving.metrics import Metrics
from serving.shadow import Shadow, mean_difference
from serving.steps import Verdict
from serving.versions import Shadowing

LABELS = {"model": "colours", "version": "2"}
ANSWER = Verdict(np.array([0.9, 0.1], np.float32), unknown=False, input_s=0.0, inference_s=0.0)


def shadowed(server, agreement):
    value = server.metrics.registry.get_sample_value("calotype_shadow_total", {**LABELS, "agreement": agreement})
    return value or 0


class Version:
    """A served version that takes what it is given and answers nothing by itself."""

    def __init__(self, version, *, resize_px=32, queued=0, labels=("red", "blue")):
        self.contract = Contract(
            name="colours",
            version=version,
            labels=labels,
            preprocess=PreprocessSpec(resize_px=resize_px, crop_px=24),
            mean=(0.5,) * 3,
            std=(0.5,) * 3,
            unknown_below=0.5,
        )
        self.queued_items = queued
        self.taken, self.futures, self.deadline = [], [], None

    def submit(self, images, *, deadline):
        self.taken += images
        self.deadline = deadline
        self.futures = [Future() for _ in images]
        return self.futures


class Shelved:
    """A catalogue with one candidate."""

    def __init__(self, version):
        self._version = version

    def shadowing(self, name):
        return Shadowing(version=2, share=1.0) if name == "colours" else None

    def candidate(self, name, version):
        assert (name, version) == ("colours", 2)
        return self._version


def hear(log, words):
    """Wait for a line of the log."""
    until(lambda: any(words in line["event"] for line in log), what=words)


def offer(images, *, answering, candidate):
    """Offer answered pictures to a candidate that is to have them all; return what counts them."""
    metrics = Metrics()
    shadow = Shadow(Shelved(candidate), metrics=metrics)
    shadow.offer(images, [ANSWER] * len(images), answering=answering)
    return metrics


def counted(metrics):
    """The agreements and how often each was counted."""
    families = {family.name: family for family in metrics.registry.collect()}
    samples = families["calotype_shadow"].samples
    return {
        sample.labels["agreement"]: sample.value
        for sample in samples
        if sample.name.endswith("_total") and sample.value
    }


@pytest.mark.parametrize(("here", "there"), [(1, 0), (0, 1)])
def test_a_candidate_gets_nothing_while_anything_waits(here, there):
    """For the version that answers, whose cores it would take, or for itself."""
    answering, candidate = Version(1, queued=here), Version(2, queued=there)
    assert counted(offer([b"one", b"two"], answering=answering, candidate=candidate)) == {"dropped": 2}
    assert candidate.taken == []


def answer_all(candidate):
    """Let a candidate answer what it has, and what comes of that."""
    while waiting := [future for future in candidate.futures if not future.done()]:
        waiting[0].set_result(ANSWER)


def test_a_candidate_gets_the_pictures_of_a_request_one_by_one_while_nobody_else_waits():
    """Sixty of them would take the cores, and the room for what waits, from those who are answered."""
    answering, candidate = Version(1), Version(2)
    metrics = offer([b"one", b"two", b"three", b"four"], answering=answering, candidate=candidate)
    assert candidate.taken == [b"one"]
    candidate.futures[0].set_result(ANSWER)
    assert candidate.taken == [b"one", b"two"]
    answering.queued_items = 1
    candidate.futures[0].set_result(ANSWER)
    assert candidate.taken == [b"one", b"two"]
    assert counted(metrics) == {"same": 2, "dropped": 2}


def test_a_candidate_gets_one_request_at_a_time():
    """What is held for it would grow with those that wait. The next one is tried when this one is done."""
    candidate, metrics = Version(2), Metrics()
    shadow = Shadow(Shelved(candidate), metrics=metrics)
    for images in ([b"one", b"two"], [b"three"]):
        shadow.offer(images, [ANSWER] * len(images), answering=Version(1))
    assert counted(metrics) == {"dropped": 1}
    answer_all(candidate)
    shadow.offer([b"four"], [ANSWER], answering=Version(1))
    assert candidate.taken == [b"one", b"two", b"four"]


def test_a_candidate_takes_no_picture_that_has_waited_for_long():
    """Its queue holds no more than a second of what nobody waits for."""
    before, candidate = time.monotonic(), Version(2)
    offer([b"one"], answering=Version(1), candidate=candidate)
    assert before < candidate.deadline <= time.monotonic() + 1.0


def test_a_candidate_gets_no_pixels_that_were_scaled_for_the_other():
    """It would be compared on pictures that it never gets; encoded ones it scales itself."""
    pixels = np.zeros((24, 24, 3), np.uint8)
    same, other = Version(2), Version(2, resize_px=28)
    offer([b"encoded", pixels], answering=Version(1), candidate=same)
    answer_all(same)
    assert len(same.taken) == 2
    metrics = offer([b"encoded", pixels], answering=Version(1), candidate=other)
    assert other.taken == [b"encoded"]
    other.futures[0].set_result(Verdict(np.array([0.2, 0.8], np.float32), unknown=False, input_s=0.0, inference_s=0.0))
    assert counted(metrics) == {"different": 1}


def test_a_picture_that_could_not_be_read_is_not_tried(models):
    """Its neighbours in the request are."""
    candidate = Version(2)
    shadow = Shadow(Shelved(candidate), metrics=Metrics())
    shadow.offer([b"one", b"torn"], [ANSWER, CorruptImageError("torn")], answering=Version(1))
    assert candidate.taken == [b"one"]


def test_answers_are_compared_by_their_labels_names():
    """A candidate may have them in another order."""
    candidate = Version(2, labels=("blue", "red"))
    metrics = offer([b"one"], answering=Version(1), candidate=candidate)
    candidate.futures[0].set_result(ANSWER._replace(scores=ANSWER.scores[::-1]))
    assert counted(metrics) == {"same": 1}
    assert metrics.registry.get_sample_value("calotype_shadow_difference_sum", LABELS) == pytest.approx(0)


def test_who_answers_is_no_candidate_and_who_refuses_drops():
    """Neither is an opinion."""
    answering, full = Version(1), Version(2)
    assert counted(offer([b"one"], answering=answering, candidate=answering)) == {}
    assert answering.taken == []

    def refuse(images, *, deadline):
        raise QueueFullError("full", retry_after_s=1.0)

    full.submit = refuse
    assert counted(offer([b"one", b"two"], answering=answering, candidate=full)) == {"dropped": 2}


def test_agreement_and_difference_are_counted(models):
    """A candidate with other weights: the same labels, other probabilities."""
    tiny_bundle.write(models, scale=0.5)
    with (
        Running(models, pin="colours=1", shadow="colours=2:1") as server,
        plain_channel(server.address) as channel,
    ):
        until(lambda: server.states() == {1: "READY", 2: "READY"}, what="the candidate")
        for count in range(1, 4):
            assert classify(channel) == "1"
            until(lambda count=count: shadowed(server, "same") == count, what="the comparison")
        value = server.metrics.registry.get_sample_value
        until(lambda: value("calotype_shadow_difference_count", LABELS) == 3, what="the difference")
        assert value("calotype_shadow_difference_sum", LABELS) > 0.01
        assert value("calotype_pictures_total", {**LABELS, "outcome": "OK"}) == 3


def test_disagreement_is_counted(models):
    """A candidate that turns the weights round."""
    tiny_bundle.write(models, scale=-1.0)
    with (
        Running(models, pin="colours=1", shadow="colours=newest:1") as server,
        plain_channel(server.address) as channel,
    ):
        until(lambda: server.states() == {1: "READY", 2: "READY"}, what="the candidate")
        classify(channel)
        until(lambda: shadowed(server, "different") == 1, what="the comparison")


@pytest.mark.parametrize(("text", "fields"), [("colours=2:0.000001", {}), ("colours=2:1", {"version": "1"})])
def test_only_a_share_of_the_requests_without_a_version_is_tried(models, text, fields):
    """Neither the rest of them, nor what was asked of one version on purpose."""
    tiny_bundle.write(models)
    with Running(models, pin="colours=1", shadow=text) as server, plain_channel(server.address) as channel:
        until(lambda: server.states() == {1: "READY", 2: "READY"}, what="the candidate")
        for _ in range(20):
            classify(channel, **fields)
    assert server.metrics.registry.get_sample_value("calotype_pictures_total", {**LABELS, "outcome": "OK"}) == 0


@pytest.mark.parametrize("is_stuck", [True, False])
def test_callers_neither_wait_for_a_candidate_nor_see_it_fail(models, is_stuck):
    """One that hangs fills up and is left alone; one that raises is counted."""
    tiny_bundle.write(models)
    may_go = threading.Event()

    def behave(rows, run):
        if is_stuck:
            may_go.wait(LIMIT_S)
        raise RuntimeError("out of order")

    def with_bad_candidate(folder):
        served = load_model(folder, server.settings, metrics=server.metrics)
        if folder.name == "2":
            with_runs(served, behave)
        return served

    server = Running(models, load=with_bad_candidate, pin="colours=1", shadow="colours=2:1")
    with server, plain_channel(server.address) as channel:
        until(lambda: server.states() == {1: "READY", 2: "READY"}, what="the candidate")
        with load(lambda: classify(channel), callers=1) as calls:
            until(lambda: shadowed(server, "dropped" if is_stuck else "failed") >= 3, what="the candidate's failure")
        assert calls.seen == {"1"}
        may_go.set()


def test_a_candidate_that_is_not_here_is_told(models):
    """Nothing would be compared, in silence."""
    with capture_logs() as log, Running(models, shadow="colours=9:1"):
        hear(log, "version 9 is to shadow it, and is not here")


def test_a_newest_version_that_answers_itself_is_told(models):
    """Without a pin it never shadows anything."""
    with capture_logs() as log, Running(models, shadow="colours=newest:1"):
        hear(log, "pin an older one")


def test_versions_with_other_labels_are_compared_by_name():
    """A label that one of them lacks has probability 0 there."""
    left, right = np.array([0.25, 0.75]), np.array([0.5, 0.25, 0.25])
    assert mean_difference(left, left, labels=(("a", "b"),) * 2) == 0
    assert mean_difference(left, right, labels=(("a", "b"), ("b", "a", "c"))) == pytest.approx((0 + 0.25 + 0.25) / 3)
