"""The looks at the models folder, one after the other."""

import asyncio
import threading

from serving.watcher import Watcher


def test_a_folder_that_does_not_answer_takes_one_thread_however_often_it_is_looked_at():
    """Else they would all wait there soon, also those that unpack messages."""
    may_go, asked = threading.Event(), []

    class Stuck:
        """A catalogue on a lost mount."""

        def refresh(self, **_):
            assert may_go.wait(20)

        def let_go(self):
            asked.append("let go")
            assert may_go.wait(20)

        def follow_pins(self):
            asked.append("pins")

        def release(self, timeout_s):
            pass

    async def scene():
        watcher = Watcher(Stuck(), lambda: None, every_s=0.001, drain_s=0)
        watcher.start()
        while asked.count("pins") < 5:  # noqa: ASYNC110 -- what is waited for happens in the watcher's threads
            await asyncio.sleep(0.001)
        may_go.set()
        await watcher.stop()

    asyncio.run(scene())
    assert asked.count("let go") <= 2  # one more may come once all go on


def test_what_fails_while_what_left_is_closed_does_not_end_the_looks():
    """It is tried again, and the exit is an exit."""
    looks, closed = [], threading.Event()

    class Failing:
        """A catalogue whose models do not close."""

        def refresh(self, **_):
            looks.append("look")
            if len(looks) == 3:
                closed.set()

        def let_go(self):
            pass

        follow_pins = let_go

        def release(self, timeout_s):
            raise OSError("out of order")

    async def scene():
        watcher = Watcher(Failing(), lambda: None, every_s=0.001, drain_s=0)
        watcher.start()
        await asyncio.to_thread(closed.wait, 20)
        await watcher.stop()

    asyncio.run(scene())
    assert len(looks) >= 3
