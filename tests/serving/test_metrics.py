"""What the metrics say after real requests, and what the batcher tells its observer."""

import asyncio
import re

import pytest
import tiny_bundle
from prometheus_client import generate_latest

from serving.admission import BatcherLimits
from serving.batcher import Batcher
from serving.catalogue import Catalogue
from serving.dispatcher import Dispatcher
from serving.errors import DeadlineExceededError, QueueFullError, UnknownModelError
from serving.loading import load_model
from serving.metrics import Metrics
from serving.model_metrics import ModelMetrics
from serving.observer import Observer
from serving.settings import ServerSettings

COLOURS = {"model": "colours", "version": "1"}


def classified(models, *requests, **limits):
    """Metrics after these requests; a request is a list of pictures, or the name of an unknown model."""
    metrics, settings = Metrics(), ServerSettings(**limits)
    catalogue = Catalogue(models, lambda folder: load_model(folder, settings, metrics=metrics))
    catalogue.load_all()
    dispatcher = Dispatcher(catalogue, max_images_per_request=8, metrics=metrics)

    async def scene():
        for request in requests:
            if isinstance(request, str):
                with pytest.raises(UnknownModelError):
                    await dispatcher.classify([b"x"], door="http", model=request)
            else:
                await dispatcher.classify(request, door="http")

    asyncio.run(scene())
    return metrics.registry.get_sample_value, catalogue


def test_pictures_are_counted_by_outcome_and_by_label(models):
    """One request with a bad picture, one for a model that is not here."""
    value, catalogue = classified(
        models, [tiny_bundle.picture("red"), b"no picture", tiny_bundle.picture("red"), tiny_bundle.foreign()], "roses"
    )
    assert value("calotype_pictures_total", {**COLOURS, "outcome": "OK"}) == 3
    assert value("calotype_unknown_total", COLOURS) == 1
    assert value("calotype_pictures_total", {**COLOURS, "outcome": "NOT_AN_IMAGE"}) == 1
    assert value("calotype_predictions_total", {**COLOURS, "label": "red"}) == 2
    assert value("calotype_requests_total", {"door": "http", "model": "colours", "status": "OK"}) == 1
    assert value("calotype_requests_total", {"door": "http", "model": "", "status": "NOT_FOUND"}) == 1
    assert value("calotype_confidence_count", COLOURS) == 3
    assert 3 / len(tiny_bundle.LABELS) < value("calotype_confidence_sum", COLOURS) < 3
    catalogue.close(20)


def test_every_stage_is_timed(models):
    """Queue, decode, preprocess, inference and the whole request; the batches hold all pictures."""
    value, catalogue = classified(models, [tiny_bundle.picture("red"), tiny_bundle.picture("blue")])
    for stage in ("queue", "decode", "preprocess"):
        assert value(f"calotype_{stage}_seconds_count", COLOURS) == 2
        assert value(f"calotype_{stage}_seconds_sum", COLOURS) > 0
    assert value("calotype_inference_seconds_sum", COLOURS) > 0
    assert value("calotype_request_seconds_count", {"door": "http", "model": "colours"}) == 1
    sizes = [value("calotype_batch_size_sum", {**COLOURS, "closing": name}) for name in ("full", "shared", "drained")]
    assert sum(sizes) == 2
    catalogue.close(20)


def test_a_version_that_is_gone_is_no_longer_listed(models):
    """model_info and the queue's depth are withdrawn."""
    value, catalogue = classified(models)
    (entry,) = catalogue.entries()
    info = {**COLOURS, "digest": entry.served.digest, "provider": "cpu", "variant": "fp32"}
    assert (value("calotype_model_info", info), value("calotype_queue_pictures", COLOURS)) == (1, 0)
    catalogue.close(20)
    assert (value("calotype_model_info", info), value("calotype_queue_pictures", COLOURS)) == (None, None)


def test_a_first_refusal_is_a_rise(models):
    """What has not happened yet is 0: of a series that begins with its first thousand nobody sees them come."""
    value, catalogue = classified(models)
    for reason in ("queue", "deadline", "cancelled"):
        assert value("calotype_rejected_total", {**COLOURS, "reason": reason}) == 0
    for outcome in ("NOT_AN_IMAGE", "EMPTY", "TOO_MANY_PIXELS", "CORRUPT", "INTERNAL"):
        assert value("calotype_pictures_total", {**COLOURS, "outcome": outcome}) == 0
    for door in ("classifier.v1", "inference", "http"):
        for model in ("", "colours"):
            for status in ("OK", "RESOURCE_EXHAUSTED", "INTERNAL"):
                assert value("calotype_requests_total", {"door": door, "model": model, "status": status}) == 0
    catalogue.close(20)


def test_a_picture_that_cannot_be_read_takes_its_time_too(models):
    """Damaged ones may take as long as others."""
    value, catalogue = classified(models, [b"no picture"])
    assert value("calotype_decode_seconds_count", COLOURS) == 1
    assert value("calotype_preprocess_seconds_count", COLOURS) == 0
    catalogue.close(20)


def test_which_version_answers_is_told_and_how_many_are_refused():
    """Also after a rollback, at which nothing is loaded; what has left is told no more."""
    metrics = Metrics()

    def told():
        samples = [sample for family in metrics.registry.collect() for sample in family.samples]
        return {
            (sample.labels["model"], sample.labels.get("version")): sample.value
            for sample in samples
            if sample.name in ("calotype_answering", "calotype_refused_versions")
        }

    metrics.show_versions(answering=[("colours", 2), ("shades", 1)], refused=["shades", "shades", "hues"])
    assert told() == {
        ("colours", "2"): 1,
        ("shades", "1"): 1,
        ("colours", None): 0,
        ("shades", None): 2,
        ("hues", None): 1,
    }
    metrics.show_versions(answering=[("colours", 1)], refused=[])
    assert told() == {("colours", "1"): 1, ("colours", None): 0}


class Ear(Observer):
    """Notes what it hears."""

    def __init__(self):
        self.waits, self.batches = [], []

    def on_wait(self, seconds):
        self.waits.append(seconds)

    def on_batch(self, size, *, closing, seconds):
        self.batches.append((size, closing, seconds))


def test_work_that_the_queue_cannot_finish_in_time_is_refused_at_the_door():
    """The pace is known from what ran before; an empty queue admits everything."""
    now, ear = [0.0], Ear()

    def run(rows):
        now[0] += 2.0 * len(rows)
        return rows

    limits = BatcherLimits(instances=1, prepare_threads=0, run_sizes=(1,), max_batch=1, max_queue_ms=1e9)
    batcher = Batcher(lambda payload: payload, run, limits=limits, clock=lambda: now[0], observer=ear)
    (hopeless,) = batcher.submit([1], sizes_bytes=[1], deadline=1.0)
    batcher.start()
    assert hopeless.result(20) == 1  # nothing was known of the pace
    assert batcher.close(20)
    assert ear.batches == [(1, "full", 2.0)]

    slow = Batcher(lambda payload: payload, run, limits=limits, clock=lambda: now[0])
    slow._admission.note_pace(2.0)
    slow.submit([1], sizes_bytes=[1], deadline=now[0] + 1.0)  # into an empty queue
    slow.submit([2, 3], sizes_bytes=[1, 1], deadline=now[0] + 7.0)
    with pytest.raises(DeadlineExceededError, match="3 items wait, an answer would take about 8800 ms"):
        slow.submit([4], sizes_bytes=[1], deadline=now[0] + 7.0)
    slow.close(0)


def test_a_queue_that_would_take_too_long_is_full():
    """The limit in time holds on a slow machine, where the limit in items does not."""
    limits = BatcherLimits(instances=2, prepare_threads=0, run_sizes=(1,), max_batch=1, max_queue_ms=500.0)
    batcher = Batcher(lambda payload: payload, lambda rows: rows, limits=limits, clock=lambda: 0.0)
    batcher._admission.note_pace(0.4)
    batcher.submit([1, 2, 3], sizes_bytes=[1, 1, 1])  # into an empty queue
    with pytest.raises(QueueFullError, match="3 items wait, for about 600 ms") as caught:
        batcher.submit([4], sizes_bytes=[1])
    assert caught.value.retry_after_s == pytest.approx(0.1)
    batcher.close(0)


def test_series_of_versions_that_are_long_gone_leave():
    """The newest eight gone ones stay; one that is back is not taken for gone."""
    metrics = Metrics()
    identity = {"digest": "d", "provider": "cpu", "variant": "fp32"}
    for version in range(1, 13):
        model = ModelMetrics(metrics, "colours", version=version)
        model.on_ready(**identity)
        model.on_answer("red", score=0.9, unknown=False)
        model.on_gone(**identity)
    text = generate_latest(metrics.exposed).decode()
    assert {int(number) for number in re.findall(r'version="(\d+)"', text)} == set(range(5, 13))
    ModelMetrics(metrics, "colours", version=5).on_ready(**identity)
    late = ModelMetrics(metrics, "colours", version=13)
    late.on_ready(**identity)
    late.on_gone(**identity)
    assert 'version="5"' in generate_latest(metrics.exposed).decode()


def test_a_version_that_is_loaded_anew_before_the_old_one_is_closed_stays_listed():
    """The same version, of other or of the same files: the one that leaves withdraws only its own."""
    metrics = Metrics()
    value = metrics.registry.get_sample_value
    old, new = ModelMetrics(metrics, "colours", version=1), ModelMetrics(metrics, "colours", version=1)
    first = {"digest": "a", "provider": "cpu", "variant": "fp32"}
    second = {**first, "digest": "b"}
    old.on_ready(**first)
    new.on_ready(**second)
    old.on_gone(**first)
    assert value("calotype_model_info", {**COLOURS, **first}) is None
    assert value("calotype_model_info", {**COLOURS, **second}) == 1
    again = ModelMetrics(metrics, "colours", version=1)
    again.on_ready(**second)
    new.on_gone(**second)
    assert value("calotype_model_info", {**COLOURS, **second}) == 1
    assert value("calotype_queue_pictures", COLOURS) == 0


def test_pictures_that_are_refused_are_all_counted(models):
    """A request of three, by the queue; and one that is refused unread, which is a request without an answer."""
    metrics, settings = Metrics(), ServerSettings(instances=1)
    served = load_model(models / "colours" / "1", settings, metrics=metrics)
    served._batcher._admission.items = settings.max_queue_images
    with pytest.raises(QueueFullError):
        served.submit([tiny_bundle.picture("red")] * 3, deadline=None)
    value = metrics.registry.get_sample_value
    assert value("calotype_rejected_total", {**COLOURS, "reason": "queue"}) == 3
    with pytest.raises(QueueFullError):
        served.check_room()
    assert value("calotype_rejected_total", {**COLOURS, "reason": "queue"}) == 4
    assert value("calotype_unanswered_total", COLOURS) == 1
    served._batcher._admission.items = 0
    served.close(20)
