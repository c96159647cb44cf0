"""How the event loop waits for what threads answer."""

import asyncio
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from running import counted

from bundle.errors import CorruptImageError
from serving.dispatcher import Dispatcher, _outcome
from serving.errors import NotReadyError
from serving.metrics import Metrics
from serving.steps import Verdict
from serving.waking import all_done

PATIENCE_S = 20
VERDICT = Verdict(None, False)


def test_all_pictures_of_a_request_are_awaited():
    """Answered by several threads at once, with a verdict or an error, some before anybody waits."""

    async def scene(threads):
        futures = [Future() for _ in range(64)]
        futures[0].set_result(VERDICT)
        answering = [threads.submit(future.set_result, VERDICT) for future in futures[2:]]
        waiting = asyncio.create_task(all_done(futures))
        await asyncio.gather(*map(asyncio.wrap_future, answering))
        assert not waiting.done()
        futures[1].set_exception(CorruptImageError("torn"))
        await asyncio.wait_for(waiting, PATIENCE_S)
        return [_outcome(future) for future in futures]

    with ThreadPoolExecutor(8) as threads:
        outcomes = asyncio.run(scene(threads))
    assert isinstance(outcomes.pop(1), CorruptImageError)
    assert outcomes == [VERDICT] * 63


def test_what_concerns_the_whole_request_is_raised():
    """Unlike a picture's own error."""
    future = Future()
    future.set_exception(RuntimeError("onnxruntime"))
    with pytest.raises(RuntimeError, match="onnxruntime"):
        _outcome(future)


def test_a_cancelled_request_takes_its_pictures_out_of_the_queue():
    """Those that nothing runs yet; an answer that comes later meets nobody."""

    async def scene():
        done, running, queued = futures = [Future() for _ in range(3)]
        done.set_result(VERDICT)
        running.set_running_or_notify_cancel()
        waiting = asyncio.create_task(all_done(futures))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert queued.cancelled()
        running.set_result(VERDICT)
        await asyncio.sleep(0)
        return running

    assert asyncio.run(scene()).result() == VERDICT


def test_an_answer_after_the_loop_has_ended_meets_nobody(caplog):
    """A server that was abandoned while a batch ran."""
    future = Future()

    async def scene():
        asyncio.get_running_loop().call_soon(asyncio.current_task().cancel)
        future.set_running_or_notify_cancel()
        await all_done([future])

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(scene())
    future.set_result(VERDICT)
    assert not caplog.records  # in which futures tell what their callbacks raise


class Busy:
    """A catalogue of one model that never answers."""

    contract = SimpleNamespace(name="colours", version=1)

    def find(self, model, version):
        return self

    def submit(self, images, *, deadline):
        return [Future() for _ in images]

    def note_request(self, outcomes, *, seconds):
        pass


@pytest.mark.parametrize(
    ("time_left_s", "status"), [(0.005, "DEADLINE_EXCEEDED"), (30.0, "CANCELLED"), (None, "CANCELLED")]
)
def test_a_call_that_the_library_ends_a_moment_before_its_deadline_was_late(time_left_s, status):
    """Its clock may be before ours: operators would look for callers that go."""
    metrics = Metrics()

    async def scene():
        dispatcher = Dispatcher(Busy(), max_images_per_request=1, metrics=metrics)
        asking = asyncio.create_task(dispatcher.classify([b""], door="http", time_left_s=time_left_s))
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    asyncio.run(scene())
    assert counted(metrics) == {("http", status): 1}


def test_an_answer_is_on_its_way_before_the_candidate_sees_a_picture():
    """Callers would wait for what is done for nobody."""
    done = []

    class Ready(Busy):
        def submit(self, images, *, deadline):
            futures = [Future() for _ in images]
            for future in futures:
                future.set_result(VERDICT)
            return futures

    shadow = SimpleNamespace(offer=lambda *_, **__: done.append("offered"))

    async def scene():
        dispatcher = Dispatcher(Ready(), max_images_per_request=1, metrics=Metrics(), shadow=shadow)
        await dispatcher.classify([b""], door="http")
        done.append("answered")
        await asyncio.sleep(0)

    asyncio.run(scene())
    assert done == ["answered", "offered"]


def test_a_request_that_a_swap_sent_on_is_noted_where_it_was_answered():
    """Not by the version that has left."""
    noted = []

    class Old(Busy):
        def submit(self, images, *, deadline):
            raise NotReadyError("shutting down")

        def note_request(self, outcomes, *, seconds):
            noted.append("old")

    class New(Busy):
        def submit(self, images, *, deadline):
            future = Future()
            future.set_result(VERDICT)
            return [future]

        def note_request(self, outcomes, *, seconds):
            noted.append("new")

    found = iter([Old(), New()])
    catalogue = SimpleNamespace(find=lambda *_: next(found))
    dispatcher = Dispatcher(catalogue, max_images_per_request=1, metrics=Metrics())

    async def scene():
        await dispatcher.classify([b""], door="http")

    asyncio.run(scene())
    assert noted == ["new"]
