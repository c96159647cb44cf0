"""Does work in threads stay one at a time where callers go?"""

import asyncio
import threading


def most_at_once(monkeypatch, place, ask, *, result=None):
    """Replace the work at `place` by one that takes long, call `ask` for two callers of whom the first goes.

    Return how many threads were in it each time that one began. `ask` gives a coroutine function for a number; the work
    gives `result`, or its arguments.
    """
    may_end, inside, counts = threading.Event(), [], []

    def slowly(*arguments):
        inside.append(arguments)
        counts.append(len(inside))
        assert may_end.wait(20)
        inside.pop()
        return arguments if result is None else result

    async def scene():
        asking = ask()
        gone, there = (asyncio.create_task(asking(number)) for number in range(2))
        while not inside:  # noqa: ASYNC110 -- a thread tells
            await asyncio.sleep(0.001)
        gone.cancel()
        assert not (await asyncio.wait({gone, there}, timeout=0.05))[0]  # the other would have begun by then
        may_end.set()
        await there

    monkeypatch.setattr(place, slowly)
    asyncio.run(scene())
    return counts
