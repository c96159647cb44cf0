"""What gRPC messages that are still on their way may take of this server's memory together.

The library takes in a message as a whole before anything of ours sees a byte of it, and does not tell how much has
come: 60 calls that each held back their last byte took 3.6 GB. So the memory of the process is looked at while messages
take longer than everyday ones do, and where it is used up the oldest of them are refused. They come by turns, so that
there is time to look: a turn ends with a look, unless an eighth of what there was for messages is used by then.
"""

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Final, NamedTuple

import grpc
import structlog

from serving.calls import Context, abort
from serving.errors import DeadlineExceededError, QueueFullError
from serving.memory import private_bytes, return_memory
from serving.ticket import past_deadline

_LOOK_S: Final = 0.02  # at a gigabyte a second 20 MB come between two looks
_LEAST_TURNS: Final = 8  # 400 messages/s begin to come where each takes longer than a look, as from slow networks
_COPIES: Final = 3  # of a message, while it is decoded
_LONGEST_TURN_LOOKS: Final = 25
_RETRY_S: Final = 1.0
_TELL_S: Final = 10.0

log = structlog.get_logger(__name__)


class _Coming(NamedTuple):
    since: float  # in the loop's time
    method: str
    is_stream: bool


class _Turn:
    """One of a few at once. Ends when its message takes longer than everyday ones do; later where it `may_stay`."""

    def __init__(self, turns: asyncio.Semaphore, may_stay: Callable[[], bool]) -> None:
        self._turns = turns
        self._may_stay = may_stay
        self._looks_left = _LONGEST_TURN_LOOKS
        self._timer: asyncio.TimerHandle | None = asyncio.get_running_loop().call_later(_LOOK_S, self._look)

    def end(self) -> None:
        """Let another one come, once."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._turns.release()

    def _look(self) -> None:
        self._looks_left -= 1
        if self._looks_left and self._may_stay():
            self._timer = asyncio.get_running_loop().call_later(_LOOK_S, self._look)
        else:
            self.end()


class Arrivals:
    """The messages that the calls of one server wait for. Used from its event loop."""

    def __init__(
        self,
        *,
        allowed_bytes: int,
        max_message_bytes: int,
        on_refusal: Callable[[str, BaseException], None],
        used_bytes: Callable[[], int] = private_bytes,
    ) -> None:
        """Let messages arrive while this process uses no more than `allowed_bytes`, and one in any case.

        `on_refusal` hears the method of a call that ends so, such as "/classifier.v1.Classifier/Classify", and why.
        """
        self._allowed = allowed_bytes
        self._max_message = max_message_bytes
        self._on_refusal = on_refusal
        self._used = used_bytes
        self._turns = asyncio.Semaphore(max(_LEAST_TURNS, allowed_bytes // (_COPIES * max_message_bytes)))
        self._own = 0  # bytes in use when no message was long under way
        self._seen = 0  # at the newest look
        self._coming: dict[Context, _Coming] = {}  # the oldest first
        self._single = 0  # calls that wait for their only message
        self.idle = asyncio.Event()  # set while there are none
        self.idle.set()
        self._is_looking = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._tell_from = 0.0  # in the loop's time

    @contextmanager
    def single(self) -> Iterator[None]:
        """Hold while a call waits for the only message that it brings."""
        self._single += 1
        self.idle.clear()
        try:
            yield
        finally:
            self._single -= 1
            if not self._single:
                self.idle.set()

    async def read(
        self, context: Context, method: str, *, is_stream: bool, check: Callable[[], None] = lambda: None
    ) -> bytes | None:
        """Return the next message of a call, None after its last. Its turn begins where `check` raises nothing.

        Where the call is refused meanwhile this raises what the library wants to see passed on.
        """
        check()
        has_waited = self._turns.locked()
        try:
            await self._turns.acquire()
        except asyncio.CancelledError as error:  # the caller has gone
            if not is_stream:
                self._on_refusal(method, late(context) or error)
            raise
        turn = _Turn(self._turns, partial(self._is_filling, self._seen))
        try:
            if has_waited:
                check()  # what was true before may not be any more
            return await self._read(context, method, is_stream=is_stream)
        finally:
            turn.end()

    async def _read(self, context: Context, method: str, *, is_stream: bool) -> bytes | None:
        self._coming[context] = _Coming(asyncio.get_running_loop().time(), method, is_stream)
        if not self._is_looking:
            self._is_looking = True
            self._look_soon()
        try:
            message = await context.read()
        except asyncio.CancelledError as error:  # the caller has gone, or the message was too large
            if context in self._coming and not is_stream:  # a stream may end between two messages
                self._on_refusal(method, late(context) or error)
            raise
        finally:
            self.forget(context)
        return message if isinstance(message, bytes) else None  # grpc.aio.EOF

    def forget(self, context: Context) -> None:
        """Hear that a call waits for no message any more; where it ends without, before the library lets go of it."""
        self._coming.pop(context, None)

    def _look_soon(self) -> None:
        self._seen = self._used()
        if not self._slow():
            self._own = self._seen
        asyncio.get_running_loop().call_later(_LOOK_S, self._look)

    def _look(self) -> None:
        if not self._coming:
            self._is_looking = False
        elif self._slow() and self._is_too_much():
            self._start(self._relieve())
        else:
            self._look_soon()

    async def _relieve(self) -> None:
        try:
            await asyncio.to_thread(return_memory)  # the C library keeps what refused messages leave behind
        except RuntimeError as error:  # no more threads are to be had
            log.warning("memory could not be returned", reason=str(error))
        if self._is_too_much():
            self._refuse_half()
        self._look_soon()

    def _slow(self) -> list[Context]:
        before = asyncio.get_running_loop().time() - _LOOK_S
        return [context for context, coming in self._coming.items() if coming.since <= before]

    def _is_filling(self, before: int) -> bool:
        return self._used() > before + (self._most() - before) // 8

    def _is_too_much(self) -> bool:
        return self._used() > self._most()

    def _most(self) -> int:
        """Return how much may be in use: what is allowed, but room for one message."""
        return max(self._allowed, self._own + self._max_message)

    def _refuse_half(self) -> None:
        """Refuse the oldest half; streams, which may just be idle, only where there is nothing else."""
        slow = self._slow()
        slow = [context for context in slow if not self._coming[context].is_stream] or slow
        refused = slow[: (len(slow) + 1) // 2]
        if (now := asyncio.get_running_loop().time()) > self._tell_from:
            self._tell_from = now + _TELL_S
            log.warning("messages on their way take too much memory", used_mb=self._used() >> 20, refused=len(refused))
        for context in refused:
            self._start(self._refuse(context))

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work, context=contextvars.Context())  # not one call's: its id would be in the log
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _refuse(self, context: Context) -> None:
        coming = self._coming.pop(context, None)
        if coming is None:  # it has come meanwhile, or the call has ended: the library must not be asked about it then
            return
        error = QueueFullError("too much is on its way at once; try again later, or send less", retry_after_s=_RETRY_S)
        self._on_refusal(coming.method, error)
        with suppress(grpc.aio.BaseError):  # said by the library of every call that is aborted
            await abort(context, error)


def late(context: Context) -> DeadlineExceededError | None:
    """Return the error of a call whose deadline has passed; else nothing."""
    left_s = context.time_remaining()
    return past_deadline() if left_s is not None and left_s <= 0 else None
