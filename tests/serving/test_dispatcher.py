"""How the event loop waits for what threads answer."""

import asyncio
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from bundle.errors import CorruptImageError
from serving.dispatcher import _outcome
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
