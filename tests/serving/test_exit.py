"""How a server ends: whom it still answers, for how long, and that it never crashes."""

import asyncio
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import pytest
import tiny_bundle
from deaf_watcher import deaf_watcher
from grpc_health.v1 import health_pb2, health_pb2_grpc
from inference_door import request
from running import Running, classify, held_by, plain_channel, until
from test_process import ENVIRONMENT

from protos import classifier_pb2 as pb
from protos import classifier_pb2_grpc
from protos.open_inference_pb2_grpc import GRPCInferenceServiceStub

NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def test_a_lame_duck_answers_also_who_comes_now(models):
    """Health says NOT_SERVING at once; balancers take their time to look, and send calls until then."""
    with Running(models, lame_duck_s=2) as server:
        stopping = asyncio.run_coroutine_threadsafe(server._server.shutdown(), server._loop)
        with plain_channel(server.address) as channel:
            ask = health_pb2_grpc.HealthStub(channel).Check
            until(lambda: ask(health_pb2.HealthCheckRequest()).status == NOT_SERVING, what="the word to balancers")
        with plain_channel(server.address) as channel:  # a new connection
            classify(channel)
        assert not stopping.done()
        assert stopping.result(60)


def test_what_outlasts_the_drain_is_ended(models):
    """A call whose engine does not answer holds up neither its caller nor the exit."""
    may_run, runs = threading.Event(), threading.Event()

    server = Running(models, load=lambda folder: held_by(may_run, server, on_run=runs.set)(folder), drain_s=0.2)
    with server, plain_channel(server.address) as channel:
        call = classifier_pb2_grpc.ClassifierStub(channel).Classify.future(
            pb.ClassifyRequest(images=[tiny_bundle.picture("red")])
        )
        assert runs.wait(60)
        assert not server.call(server._server.shutdown())
        assert call.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        may_run.set()


def test_exits_without_a_time_to_drain_are_no_crashes(models):
    """Two stops of grpc.aio that time out beside each other ended one exit in thirty in a segfault."""
    command = [sys.executable, str(Path(__file__).with_name("exits.py")), str(models), "120"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_a_watcher_who_reads_nothing_holds_up_nobody(models):
    """Neither a swap, nor what other watchers hear of it, nor the exit."""
    server = Running(models, drain_s=1)
    with server, deaf_watcher(server.address), deaf_watcher(server.address, service="colours/2"):
        with plain_channel(server.address) as channel:
            ask = health_pb2.HealthCheckRequest(service="colours/3")
            told = (state.status for state in health_pb2_grpc.HealthStub(channel).Watch(ask, timeout=60))
            seen = (status for status in told if status != NOT_SERVING)  # while it is loaded
            assert next(seen) == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            for _ in range(2):
                tiny_bundle.write(models)
            until(lambda: server.answering() == 3, what="the swap")
            assert next(seen) == health_pb2.HealthCheckResponse.SERVING
        assert server.call(server._server.shutdown())


def is_answered_late(server, call, *, may_end):
    """Shut down, and let a call go on only when stragglers have had their time: say whether both end well."""
    stopping = asyncio.run_coroutine_threadsafe(server._server.shutdown(), server._loop)
    threading.Event().wait(1.8)
    may_end.set()
    return call.result(60).results[0].predictions[0].label == "red" and stopping.result(60)


def test_a_call_under_way_is_answered_however_long_it_takes_within_the_drain(models):
    """Longer than stragglers have, and than answers to be flushed."""
    may_run = threading.Event()
    server = Running(models, load=lambda folder: held_by(may_run, server)(folder))
    with server, plain_channel(server.address) as channel:
        request = pb.ClassifyRequest(images=[tiny_bundle.picture("red")])
        call = classifier_pb2_grpc.ClassifierStub(channel).Classify.future(request)
        until(lambda: not server._server._dispatcher.idle.is_set(), what="the call")
        assert is_answered_late(server, call, may_end=may_run)


@contextmanager
def slow_network(address, *, first_bytes, finish):
    """Give the address of a way to a server on which what a caller sends stops after so many bytes, for a while."""
    host, _, port = address.rpartition(":")

    def carry(source, sink, count):
        with suppress(OSError):  # the other end has gone
            while data := source.recv(min(count, 2**16)):
                sink.sendall(data)
                count -= len(data)
                if not count:
                    finish.wait(60)
                    count = 2**30
            sink.shutdown(socket.SHUT_WR)

    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection((host, int(port))) as server:

        def serve():
            with listener.accept()[0] as caller:
                back = threading.Thread(target=carry, args=(server, caller, 2**30))
                back.start()
                carry(caller, server, first_bytes)
                back.join()

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


def test_a_message_on_its_way_has_the_whole_drain_to_arrive(models):
    """Over a slow network a picture takes longer than stragglers have."""
    finish = threading.Event()
    image = tiny_bundle.picture("red") + bytes(100_000)  # behind a picture's end nobody looks
    with (
        Running(models) as server,
        slow_network(server.address, first_bytes=50_000, finish=finish) as address,
        plain_channel(address) as channel,
    ):
        call = classifier_pb2_grpc.ClassifierStub(channel).Classify.future(pb.ClassifyRequest(images=[image]))
        until(lambda: not server._server._arrivals.idle.is_set(), what="the call")
        assert is_answered_late(server, call, may_end=finish)


@pytest.mark.parametrize("is_v2", [False, True])
def test_what_comes_at_the_last_moment_is_answered_and_then_streams_are_told(models, is_v2):
    """For a second calls are taken whose client could not know; what an open stream sends later gets UNAVAILABLE."""
    pause = threading.Event()

    def requests():
        while True:
            yield request("red") if is_v2 else pb.ClassifyRequest(images=[tiny_bundle.picture("red")])
            pause.wait(0.05)

    with Running(models) as server, plain_channel(server.address) as channel:
        stub = (GRPCInferenceServiceStub if is_v2 else classifier_pb2_grpc.ClassifierStub)(channel)
        stream = (stub.ModelStreamInfer if is_v2 else stub.ClassifyStream)(requests())
        next(stream)
        stopping = asyncio.run_coroutine_threadsafe(server._server.shutdown(), server._loop)
        answers, started = [], time.monotonic()
        with pytest.raises(grpc.RpcError) as caught:
            answers.extend(stream)
        assert time.monotonic() - started > 0.9
        assert len(answers) > 2
        assert not any(getattr(answer, "error_message", "") for answer in answers)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "DRAINING" in caught.value.details()
        assert stopping.result(60)
