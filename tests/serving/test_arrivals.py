"""What messages that are still on their way may take together, and who is refused where it is too much."""

import asyncio
import gc
import gzip
from functools import partial
from types import SimpleNamespace

import grpc
import pytest
import structlog
from half_sent import half_sent
from running import Running, classify, plain_channel, until

from serving.arrivals import Arrivals
from serving.errors import DeadlineExceededError, QueueFullError
from serving.memory import private_bytes, return_memory
from serving.packed import Unpacker
from serving.rpcs import Rpcs
from serving.settings import ServerSettings

MB = 2**20
CLASSIFY, CHECK = "/classifier.v1.Classifier/Classify", "/grpc.health.v1.Health/Check"
ALLOWED_MB, MESSAGE_MB = 100, 10
WAIT_S = 20
TURNS = 8  # the least


class FakeContext:
    """A call whose message comes when the test says so, or never; refused, it ends as the library would end it."""

    def __init__(self):
        self.message = asyncio.get_running_loop().create_future()
        self.refused_with, self.is_read = None, False

    def time_remaining(self):
        return None

    async def read(self):
        self.is_read = True
        return await self.message

    def set_trailing_metadata(self, metadata):
        """As the library's."""

    def add_done_callback(self, callback):
        """As the library's."""

    def trailing_metadata(self):
        return ()

    async def abort(self, code, details, trailers):
        self.refused_with = code.name, dict(trailers)
        error = grpc.aio.AbortError("aborted")
        if not self.message.done():
            self.message.set_exception(error)
        raise error


class Memory:
    """Memory in use, in MB, as a test sets it; and who was refused for it."""

    def __init__(self, used_mb):
        self.used_mb, self.looks, self.refusals = used_mb, 0, []
        self._changed = asyncio.Event()

    def used_bytes(self):
        self.looks += 1
        self._changed.set()
        return self.used_mb * MB

    def on_refusal(self, method, error):
        self.refusals.append((method, getattr(error, "retry_after_s", None)))
        self._changed.set()

    def arrivals(self):
        return Arrivals(
            allowed_bytes=ALLOWED_MB * MB,
            max_message_bytes=MESSAGE_MB * MB,
            on_refusal=self.on_refusal,
            used_bytes=self.used_bytes,
        )

    async def until(self, condition):
        async with asyncio.timeout(WAIT_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def looked_at(self, times=4):
        goal = self.looks + times
        await self.until(lambda: self.looks >= goal)


def scene(play, *, used_mb=50):
    async def main():
        memory = Memory(used_mb)
        arrivals, calls, tasks = memory.arrivals(), [], []

        def coming(count, *, is_stream=False, method=CLASSIFY):
            new = [FakeContext() for _ in range(count)]
            calls.extend(new)
            tasks.extend(asyncio.create_task(arrivals.read(one, method, is_stream=is_stream)) for one in new)
            return new

        await play(arrivals, coming, memory)
        for call in calls:
            if not call.message.done():
                call.message.set_result(grpc.aio.EOF)
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(main())


def refused(calls):
    return [call.refused_with is not None for call in calls]


def test_nobody_is_refused_while_there_is_memory():
    """However long their messages take."""

    async def play(arrivals, coming, memory):
        calls = coming(4)
        await memory.looked_at(8)
        assert refused(calls) == [False] * 4

    scene(play, used_mb=ALLOWED_MB)


def test_where_memory_is_used_up_the_oldest_half_is_refused():
    """With the status, the time to come again, and the method for whoever counts; the rest may still come."""

    async def play(arrivals, coming, memory):
        calls = coming(5)
        await memory.looked_at()
        memory.used_mb = ALLOWED_MB + 1
        await memory.until(lambda: memory.refusals)
        memory.used_mb = ALLOWED_MB
        await memory.looked_at()
        assert refused(calls) == [True] * 3 + [False] * 2
        assert memory.refusals == [(CLASSIFY, 1.0)] * 3
        status, trailers = calls[0].refused_with
        assert (status, trailers["grpc-retry-pushback-ms"]) == ("RESOURCE_EXHAUSTED", "1000")

    scene(play)


def test_nobody_is_refused_for_memory_that_the_c_library_can_give_back(monkeypatch):
    """It keeps what refused messages leave behind."""

    async def play(arrivals, coming, memory):
        monkeypatch.setattr("serving.arrivals.return_memory", lambda: setattr(memory, "used_mb", ALLOWED_MB))
        calls = coming(4)
        await memory.looked_at()
        memory.used_mb = ALLOWED_MB + 1
        await memory.until(lambda: memory.used_mb == ALLOWED_MB)
        await memory.looked_at()
        assert refused(calls) == [False] * 4

    scene(play)


def test_streams_are_refused_only_where_there_is_nothing_else():
    """They may just be idle."""

    async def play(arrivals, coming, memory):
        streams, call = coming(2, is_stream=True), coming(1)
        await memory.looked_at()
        memory.used_mb = ALLOWED_MB + 1
        await memory.until(lambda: memory.refusals)
        assert refused(call) == [True]
        await memory.until(lambda: len(memory.refusals) == 3)
        assert refused(streams) == [True] * 2

    scene(play)


def test_what_has_come_is_not_refused():
    """Whatever else is in memory then: the queue's door knows what it is."""

    async def play(arrivals, coming, memory):
        call, slow = coming(2)
        await memory.looked_at()
        call.message.set_result(b"message")
        memory.used_mb = 10 * ALLOWED_MB
        await memory.until(lambda: memory.refusals)
        assert refused([call, slow]) == [False, True]

    scene(play)


def test_a_call_that_has_ended_is_left_alone():
    """Its read may still be pending; the library would crash if it were asked to refuse."""

    async def play(arrivals, coming, memory):
        gone, there = coming(2, is_stream=True)
        await memory.looked_at()
        arrivals.forget(gone)
        memory.used_mb = ALLOWED_MB + 1
        await memory.until(lambda: memory.refusals)
        assert refused([gone, there]) == [False, True]

    scene(play)


def test_one_message_may_always_come():
    """Also where the server itself takes more than its part."""

    async def play(arrivals, coming, memory):
        (first,) = coming(1)
        await memory.looked_at(1)  # nothing is long under way yet
        memory.used_mb += MESSAGE_MB
        await memory.looked_at()
        assert refused([first]) == [False]
        memory.used_mb += 1
        await memory.until(lambda: memory.refusals)

    scene(play, used_mb=2 * ALLOWED_MB)


def test_a_read_that_nobody_waits_for_leaves_nothing_in_the_log():
    """A stream is ended while its next message is under way; then the library says that there is none."""

    async def main():
        unheard = []
        asyncio.get_running_loop().set_exception_handler(lambda _, event: unheard.append(event["message"]))
        memory = Memory(50)
        context, rpcs = FakeContext(), Rpcs(None, arrivals=memory.arrivals(), unpacker=Unpacker(MB), max_fields=100)

        async def answer(requests, _):
            reading = asyncio.create_task(anext(requests))
            await memory.looked_at()
            reading.cancel()

        rpcs.add_registered_method_handlers("s", {"m": grpc.stream_stream_rpc_method_handler(answer)})
        await rpcs.service(SimpleNamespace(method="/s/m", invocation_metadata=())).stream_stream(None, context)
        context.message.set_exception(grpc.aio.AbortError("aborted"))
        await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()}, timeout=WAIT_S)
        del context
        gc.collect()  # where Python tells of errors that nobody asked for
        return unheard

    assert asyncio.run(main()) == []


class Message(bytes):
    """Bytes that tell when nobody has them any more."""

    left = 0

    def __del__(self):
        Message.left += 1


class Talkative(FakeContext):
    """A call that brings one message at once, and the next never."""

    def __init__(self):
        super().__init__()
        self._messages = [Message(b"first")]

    async def read(self):
        return self._messages.pop() if self._messages else await self.message


def test_a_silent_stream_keeps_no_message():
    """The last one may have 64 MB, and the next may never come."""

    async def main():
        memory, left = Memory(50), []
        before = Message.left
        context, rpcs = Talkative(), Rpcs(None, arrivals=memory.arrivals(), unpacker=Unpacker(MB), max_fields=100)

        async def answer(requests, _):
            await anext(requests)
            waiting = asyncio.create_task(anext(requests))
            await memory.looked_at()
            left.append(Message.left - before)
            waiting.cancel()

        rpcs.add_registered_method_handlers(
            "s", {"m": grpc.stream_stream_rpc_method_handler(answer, lambda data: data)}
        )
        await rpcs.service(SimpleNamespace(method="/s/m", invocation_metadata=())).stream_stream(None, context)
        return left

    assert asyncio.run(main()) == [1]


@pytest.mark.parametrize("path", [CLASSIFY, CHECK])
def test_half_sent_messages_do_not_fill_the_memory(models, monkeypatch, path):
    """64 MB of them where 16 are left: enough are refused, and everybody else is answered."""
    return_memory()
    monkeypatch.setattr(ServerSettings, "memory_bytes", private_bytes() + 16 * MB)
    with (
        Running(models, max_message_bytes=4 * MB, max_queue_bytes=4 * MB) as server,
        half_sent(server.address, path=path, calls=16, size_bytes=4 * MB - 1) as ended,
        plain_channel(server.address) as channel,
    ):
        exhausted = str(grpc.StatusCode.RESOURCE_EXHAUSTED.value[0])
        until(lambda: ended[exhausted] >= 8, what="refusals")
        classify(channel)
        assert set(ended) == {exhausted}
        labels = {"door": "classifier.v1", "model": "", "status": "RESOURCE_EXHAUSTED"}
        counted = partial(server.metrics.registry.get_sample_value, "calotype_requests_total", labels)
        if path == CLASSIFY:
            until(lambda: counted() == ended[exhausted], what="counts")
        else:
            assert counted() == 0


def test_a_shortage_is_one_line_however_often_it_is_looked_at():
    """It may last for minutes, and a look comes every 20 ms."""

    async def play(arrivals, coming, memory):
        calls = coming(16)
        await memory.looked_at()
        memory.used_mb = ALLOWED_MB + 1
        await memory.until(lambda: all(refused(calls)))
        assert len(memory.refusals) == 16

    with structlog.testing.capture_logs() as lines:
        scene(play)
    assert sum("take too much memory" in line["event"] for line in lines) == 1


@pytest.mark.parametrize(("is_stream", "heard"), [(False, [CLASSIFY]), (True, [])])
def test_a_caller_who_goes_before_its_message_is_told_of_unless_it_is_a_stream(is_stream, heard):
    """Which may end between two messages."""

    async def main():
        told = []
        arrivals = Arrivals(
            allowed_bytes=MB, max_message_bytes=MB, on_refusal=lambda method, _: told.append(method), used_bytes=int
        )
        reading = asyncio.create_task(arrivals.read(FakeContext(), CLASSIFY, is_stream=is_stream))
        await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait({reading})
        return told

    assert asyncio.run(main()) == heard


def test_a_call_that_goes_while_it_is_refused_is_told_of_once():
    """As refused."""
    told = []

    async def play(arrivals, coming, memory):
        (call,) = coming(1)

        async def abort(*_):
            call.message.cancel()
            raise grpc.aio.AbortError("aborted")

        call.abort = abort
        await memory.looked_at()
        memory.used_mb = ALLOWED_MB + 1
        await memory.until(call.message.cancelled)
        told.append(memory.refusals)

    scene(play)
    assert told == [[(CLASSIFY, 1.0)]]


def test_looking_goes_on_where_no_thread_is_to_be_had(monkeypatch):
    """Then most of all: somebody is refused, and memory is looked at again."""

    async def no_thread(*_):
        raise RuntimeError("can't start new thread")

    async def play(arrivals, coming, memory):
        monkeypatch.setattr(asyncio, "to_thread", no_thread)
        calls = coming(3)
        await memory.looked_at()
        memory.used_mb = ALLOWED_MB + 1
        await memory.until(lambda: all(refused(calls)))

    scene(play)


def begun(calls):
    """How many messages are asked for: the library takes in no more of the others than it must."""
    return sum(call.is_read for call in calls)


def test_messages_come_by_turns_while_memory_is_filling():
    """Else hundreds of large ones would be here before anybody looks. One that has come makes room."""

    async def play(arrivals, coming, memory):
        calls = coming(TURNS + 8)
        await memory.looked_at(1)
        memory.used_mb = 60  # of the 50 between what the server itself has and what is allowed, more than an eighth
        await memory.looked_at(2 * TURNS)  # each turn looks too
        assert begun(calls) == TURNS
        calls[0].message.set_result(b"message")
        await memory.until(lambda: begun(calls) == TURNS + 1)

    scene(play, used_mb=50)


@pytest.mark.parametrize("used_mb", [25, 99, 2 * ALLOWED_MB])
def test_a_message_that_takes_long_holds_up_nobody_where_there_is_room(used_mb):
    """However much the server itself takes: all of them are on their way soon."""

    async def play(arrivals, coming, memory):
        calls = coming(TURNS + 8)
        await memory.until(lambda: begun(calls) == TURNS + 8)
        assert refused(calls) == [False] * (TURNS + 8)

    scene(play, used_mb=used_mb)


def test_messages_that_never_come_hold_the_others_up_for_half_a_second_at_most(monkeypatch):
    """A few callers would close the door else."""
    monkeypatch.setattr("serving.arrivals._LOOK_S", 0.001)

    async def play(arrivals, coming, memory):
        calls = coming(TURNS + 8)
        await memory.looked_at(1)
        memory.used_mb = 60
        await memory.until(lambda: begun(calls) == TURNS + 8)

    scene(play, used_mb=50)


def test_a_stream_that_has_long_been_silent_makes_no_turn_longer():
    """It began before a model was loaded that takes an eighth of the memory: what is used has not grown since."""

    async def play(arrivals, coming, memory):
        coming(1, is_stream=True)
        await memory.looked_at(4)
        memory.used_mb = 65
        await memory.looked_at(4)
        before, calls = memory.looks, coming(TURNS + 8)
        await memory.until(lambda: begun(calls) == TURNS + 8)
        assert memory.looks - before < 50  # 8 turns of one, and of the loop beside them; turns of 25 are 200

    scene(play, used_mb=50)


@pytest.mark.parametrize(("left_s", "kind"), [(None, asyncio.CancelledError), (-0.1, DeadlineExceededError)])
def test_a_caller_who_goes_while_its_message_is_unpacked_is_counted(left_s, kind):
    """As everywhere on the way."""
    refusals = []

    class Busy:
        """An unpacker that others have."""

        async def unpack(self, _):
            await asyncio.get_running_loop().create_future()

    async def main():
        context, behaviour = FakeContext(), grpc.unary_unary_rpc_method_handler(lambda *_: None)
        context.time_remaining = lambda: left_s
        context.message.set_result(gzip.compress(b"message"))
        arrivals, tell = Memory(50).arrivals(), lambda method, error: refusals.append((method, type(error)))
        rpcs = Rpcs(None, arrivals=arrivals, unpacker=Busy(), max_fields=100, on_refusal=tell)
        rpcs.add_registered_method_handlers("s", {"m": behaviour})
        answer = rpcs.service(SimpleNamespace(method="/s/m", invocation_metadata=())).stream_unary
        call = asyncio.create_task(answer(None, context))
        await asyncio.wait({call}, timeout=0.05)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)

    asyncio.run(main())
    assert refusals == [("/s/m", kind)]


def test_who_had_to_wait_for_a_turn_is_asked_about_again():
    """The queue may have filled up meanwhile: then the message is never read, and its turn is another's."""

    async def main():
        memory, asked = Memory(ALLOWED_MB), []

        def check():
            asked.append(len(asked))
            if len(asked) > TURNS + 1:
                raise QueueFullError("9 items wait")

        arrivals, calls = memory.arrivals(), [FakeContext() for _ in range(TURNS + 1)]
        reads = [asyncio.create_task(arrivals.read(one, CLASSIFY, is_stream=False, check=check)) for one in calls]
        await memory.looked_at()
        calls[0].message.set_result(b"message")
        assert await reads[0] == b"message"
        with pytest.raises(QueueFullError):
            await reads[-1]
        assert begun(calls) == TURNS
        late = FakeContext()
        late.message.set_result(b"late")
        assert await arrivals.read(late, CLASSIFY, is_stream=False) == b"late"
        for read in reads[1:-1]:
            read.cancel()
        await asyncio.gather(*reads, return_exceptions=True)

    asyncio.run(main())


def test_who_goes_while_waiting_for_a_turn_is_told_of():
    """It is a request that got no answer."""

    async def main():
        memory = Memory(ALLOWED_MB)
        arrivals, calls = memory.arrivals(), [FakeContext() for _ in range(TURNS + 1)]
        reads = [asyncio.create_task(arrivals.read(one, CLASSIFY, is_stream=False)) for one in calls]
        await memory.looked_at(1)
        reads[-1].cancel()
        await asyncio.wait({reads[-1]})
        assert memory.refusals == [(CLASSIFY, None)]
        for read in reads:
            read.cancel()
        await asyncio.gather(*reads, return_exceptions=True)

    asyncio.run(main())
