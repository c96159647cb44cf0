"""What clients see of restarts and of the limits of a connection: no lost call, and no more at once than allowed."""

import json
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
import tiny_bundle
from running import LIMIT_S, Running, classify, held_by, load, plain_channel, until
from test_process import port, process

from protos import classifier_pb2 as pb
from protos import classifier_pb2_grpc
from serving.client import Client
from serving.connections import connection_options
from serving.settings import ServerSettings

BALANCED = json.dumps(
    {
        "loadBalancingConfig": [{"round_robin": {}}],
        "healthCheckConfig": {"serviceName": "classifier.v1.Classifier"},
    }
)


def free_ports(count):
    """Ports that nobody listens on just now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def test_a_connection_has_the_limits_that_are_documented():
    """The others of `connections` are seen from outside; these take a minute to show."""
    options = dict(connection_options(ServerSettings(drain_s=5.0)))
    assert options["grpc.http2.bdp_probe"] == 0  # or what a call may send unread grows with the network
    assert options["grpc.keepalive_time_ms"] == 60_000
    assert options["grpc.keepalive_timeout_ms"] == 20_000
    assert options["grpc.keepalive_permit_without_calls"] == 1  # idle ones too, or a balancer drops them in silence
    assert options["grpc.http2.min_recv_ping_interval_without_data_ms"] == 10_000
    assert options["grpc.server_handshake_timeout_ms"] == 10_000
    assert options["grpc.max_send_message_length"] == options["grpc.max_receive_message_length"] == 64 * 2**20
    assert options["grpc.max_connection_age_ms"] == 600_000
    assert options["grpc.max_connection_age_grace_ms"] == 30_000  # not the exit's


def roll(models, ports, *options, calls):
    """Replace the server on each port, one after the other; `calls` is entered while all are up."""

    def server(number):
        return process(models, *options, "--address", f"127.0.0.1:{number}")

    first, second = ports
    with server(first) as old_first, server(second) as old_second:
        for old in (old_first, old_second):
            port(old)
        with calls as running:
            running.more()
            end(old_first, running)
            with server(first) as new_first:
                port(new_first)
                running.more()
                end(old_second, running)
                with server(second) as new_second:
                    port(new_second)
                    running.more()
                    running.stop()  # before the servers are killed


def end(started, running):
    started.send_signal(signal.SIGTERM)
    running.more()
    assert started.wait(timeout=LIMIT_S) == 0
    running.more()


def test_rolling_restart_loses_no_call_of_a_balanced_client(models):
    """A standard channel with round_robin and health checks, and no retries: the lame-duck time lets it turn away."""
    ports = free_ports(2)
    target = "ipv4:" + ",".join(f"127.0.0.1:{number}" for number in ports)
    options = {"grpc.service_config": BALANCED, "grpc.enable_retries": 0}
    with plain_channel(target, **options) as channel:
        roll(models, ports, "--lame-duck-s", "1", calls=load(lambda: classify(channel)))


def test_rolling_restart_loses_no_call_of_our_client(models):
    """It retries, so it needs neither balancing nor a lame-duck time."""
    ports = free_ports(2)
    with Client("ipv4:" + ",".join(f"127.0.0.1:{number}" for number in ports)) as client:
        red = tiny_bundle.picture("red")
        roll(models, ports, calls=load(lambda: client.classify([red], timeout_s=LIMIT_S).version))


def test_renewed_connections_lose_no_call(models):
    """At an age of 0.1 s a standard client without retries reconnects again and again."""
    with Running(models, max_connection_age_s=0.1) as server, plain_channel(server.address) as channel:
        lost = []
        channel.subscribe(lambda state: lost.append(state) if state is grpc.ChannelConnectivity.IDLE else None)
        with load(lambda: classify(channel)):
            until(lambda: len(lost) >= 3, what="three renewals")


def test_a_connection_runs_no_more_calls_than_allowed(models):
    """Further ones wait at the client; another connection has its own share."""
    may_answer, entered = threading.Event(), []

    class Noting:
        """A model that notes what it is asked."""

        def __init__(self, model):
            self._model = model

        def __getattr__(self, name):
            return getattr(self._model, name)

        def submit(self, images, *, deadline):
            entered.append(len(images))
            return self._model.submit(images, deadline=deadline)

    def held(folder):
        return Noting(held_by(may_answer, server)(folder))

    server = Running(models, load=held, max_concurrent_streams=2)
    red = tiny_bundle.picture("red")
    # With retries: gRPC refuses a call that reaches the server before it has let go of the stream that ended before.
    with (
        server,
        Client(server.address) as first,
        plain_channel(server.address, other=1) as second,
        ThreadPoolExecutor(6) as pool,
    ):
        calls = [pool.submit(first.classify, [red], timeout_s=LIMIT_S) for _ in range(5)]
        until(lambda: len(entered) == 2, what="the first two calls")
        calls.append(pool.submit(classify, second))
        until(lambda: len(entered) == 3, what="the other connection's call")
        may_answer.set()
        assert all(call.result(LIMIT_S) for call in calls)
    assert len(entered) == 6


def test_connections_beyond_the_limit_are_closed_until_one_ends(models):
    """A stranger that only opens connections takes no descriptors from the models; who is in notices nothing."""
    with (
        Running(models, max_connections=2) as server,
        plain_channel(server.address) as first,
        plain_channel(server.address, other=2) as later,
    ):
        with plain_channel(server.address, other=1) as second:
            assert [classify(first), classify(second)] == ["1", "1"]
            assert status_without_waiting(later) is grpc.StatusCode.UNAVAILABLE
            assert [classify(first), classify(second)] == ["1", "1"]
        assert [classify(later), classify(first)] == ["1", "1"]  # it connects again by itself


def status_without_waiting(channel):
    """The status of a call on a channel that may not be connected."""
    with pytest.raises(grpc.RpcError) as refused:
        classifier_pb2_grpc.ClassifierStub(channel).ListModels(pb.ListModelsRequest(), timeout=LIMIT_S)
    return refused.value.code()
