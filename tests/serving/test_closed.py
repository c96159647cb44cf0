"""Closed to strangers: TLS, client certificates and tokens over real sockets, and where a server refuses to listen."""

import asyncio
import errno
import os
import socket
import ssl
import threading
import urllib.error
import urllib.request
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
import structlog
import tiny_bundle
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2_grpc
from test_client_and_cli import command
from test_process import refusal

from protos import classifier_pb2 as pb
from protos import classifier_pb2_grpc
from serving.catalogue import Catalogue
from serving.channel import OPEN as NOTHING
from serving.channel import Access
from serving.client import Client
from serving.errors import ClientError, SettingsError, StartupError
from serving.loading import load_model
from serving.metrics import Metrics
from serving.readings import read
from serving.server import Server
from serving.settings import ServerSettings
from serving.tls import TlsFiles, first_context, http_context, keep_telling_validity, next_context, tell_validity
from serving.tokens import new_token
from serving.watched import WatchedFiles

OPEN = ServerSettings(address="127.0.0.1:0", http_address="off", instances=1)
WAIT_S = 20
NO_RETRY = [("grpc.enable_retries", 0)]
PATIENCE_S = 20


@asynccontextmanager
async def serving(models, settings):
    """A server with these settings; its address."""
    metrics = Metrics()
    server = Server(
        Catalogue(models, lambda folder: load_model(folder, settings, metrics=metrics)), settings, metrics=metrics
    )
    await server.startup()
    try:
        await server.say_serving()
        yield f"127.0.0.1:{server.http_port or server.port}"
    finally:
        await server.shutdown()


async def outcome(address, access=NOTHING):
    """The best label of a red picture, or the status of the refusal."""
    async with access.async_channel(address, NO_RETRY) as channel:
        request = pb.ClassifyRequest(images=[tiny_bundle.picture("red")])
        stub = classifier_pb2_grpc.ClassifierStub(channel)
        try:
            answer = await stub.Classify(request, timeout=WAIT_S, metadata=access.metadata())
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return answer.results[0].predictions[0].label


class Authority:
    """A certificate authority that writes PEM files."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._ca, self.pem = trustme.CA(key_type=trustme.KeyType.ECDSA), folder / "ca.pem"
        self._ca.cert_pem.write_to_path(str(self.pem))

    def issue(self, stem: Path) -> tuple[Path, Path]:
        made = self._ca.issue_cert("127.0.0.1", key_type=trustme.KeyType.ECDSA)
        cert, key = stem.with_suffix(".crt"), stem.with_suffix(".key")
        made.cert_chain_pems[0].write_to_path(str(cert))
        made.private_key_pem.write_to_path(str(key))
        return cert, key


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path / "authority")


def test_tls_lets_in_only_who_speaks_it_and_trusts_its_authority(models, authority, tmp_path):
    """A plain client and one that trusts another authority get no answer."""
    cert, key = authority.issue(tmp_path / "server")

    async def scene():
        async with serving(models, replace(OPEN, tls_cert=cert, tls_key=key)) as address:
            assert await outcome(address, Access(tls_ca=authority.pem)) == "red"
            assert await outcome(address) == "UNAVAILABLE"
            assert await outcome(address, Access(tls_ca=Authority(tmp_path / "other").pem)) == "UNAVAILABLE"

    asyncio.run(scene())


def test_mutual_tls_wants_a_certificate_of_its_authority(models, authority, tmp_path):
    """None, and one of a stranger, are not let in."""
    cert, key = authority.issue(tmp_path / "server")
    settings = replace(OPEN, tls_cert=cert, tls_key=key, tls_client_ca=authority.pem)
    shown = {
        name: authority.issue(tmp_path / name) if name == "known" else Authority(tmp_path / "x").issue(tmp_path / name)
        for name in ("known", "stranger")
    }

    async def scene():
        async with serving(models, settings) as address:
            trusting = Access(tls_ca=authority.pem)
            known, stranger = (replace(trusting, tls_cert=cert, tls_key=key) for cert, key in shown.values())
            assert await outcome(address, known) == "red"
            assert await outcome(address, stranger) == "UNAVAILABLE"
            assert await outcome(address, trusting) == "UNAVAILABLE"

    asyncio.run(scene())


def test_changed_certificate_counts_without_a_restart(models, authority, tmp_path):
    """Half a renewal changes nothing; a whole one is seen by the next handshake."""
    cert, key = authority.issue(tmp_path / "server")
    other = Authority(tmp_path / "other")

    async def scene():
        async with serving(models, replace(OPEN, tls_cert=cert, tls_key=key)) as address:
            assert await outcome(address, Access(tls_ca=authority.pem)) == "red"
            new_cert, new_key = other.issue(tmp_path / "new")
            new_cert.replace(cert)
            assert await outcome(address, Access(tls_ca=authority.pem)) == "red"
            new_key.replace(key)
            assert await outcome(address, Access(tls_ca=other.pem)) == "red"
            assert await outcome(address, Access(tls_ca=authority.pem)) == "UNAVAILABLE"

    asyncio.run(scene())


def test_unusable_certificate_stops_the_start_with_one_line(models, authority, tmp_path):
    """A key that is not the certificate's, and a file that is not there."""
    cert, _ = authority.issue(tmp_path / "server")
    _, other_key = authority.issue(tmp_path / "other")
    for key in (other_key, tmp_path / "none.key"):
        done = command(
            "run", models, "--address", "localhost:0", "--http-address", "off", "--tls-cert", cert, "--tls-key", key
        )
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
        assert str(key) in done.stderr
    with pytest.raises(SettingsError, match="--tls-key"):
        replace(OPEN, tls_cert=cert)


def test_token_is_asked_for_except_by_health(models, tmp_path):
    """Missing and wrong get one text; a line added to the file lets in the next request; a bad file changes nothing."""
    (token, line), (second, second_line) = new_token("alice"), new_token("bob")
    path = tmp_path / "tokens"
    path.write_text(f"# who may ask\n\n{line}\n")

    async def scene():
        async with (
            serving(models, replace(OPEN, tokens=path)) as address,
            grpc.aio.insecure_channel(address) as channel,
        ):
            assert await outcome(address, Access(token=token)) == "red"
            assert await outcome(address, Access(token=second)) == "UNAUTHENTICATED"
            stub = classifier_pb2_grpc.ClassifierStub(channel)
            texts = [await _refusal(stub.Classify, metadata) for metadata in _wrong(token)]
            assert len(set(texts)) == 1
            assert texts[0][0] == "UNAUTHENTICATED"
            assert await _refusal(stub.ListModels, ()) == texts[0]
            assert await _reflected(channel) == "UNAUTHENTICATED"
            check = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            assert (await check).status == health_pb2.HealthCheckResponse.SERVING

            path.write_text(f"{second_line}\nnonsense\n")
            assert await outcome(address, Access(token=token)) == "red"
            path.write_text(f"{second_line}\n")
            assert await outcome(address, Access(token=second)) == "red"
            assert await outcome(address, Access(token=token)) == "UNAUTHENTICATED"

    asyncio.run(scene())


def _wrong(token):
    name = "authorization"
    right = (name, f"Bearer {token}")
    return [(), ((name, "Bearer x"),), ((name, token),), ((name, f"Basic {token}"),), (right, right), ((name, ""),)]


async def _refusal(method, metadata):
    request = pb.ClassifyRequest() if "Classify" in str(method._method) else pb.ListModelsRequest()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await method(request, metadata=metadata)
    return caught.value.code().name, caught.value.details()


async def _reflected(channel):
    """How reflection ends, before a message is sent: of one that meets the refusal the library makes INTERNAL."""
    call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(timeout=PATIENCE_S)
    return (await call.code()).name


def test_health_and_reflection_can_be_closed(models, tmp_path):
    """Each by its own setting."""
    token, line = new_token("alice")
    (tmp_path / "tokens").write_text(str(line))
    settings = replace(OPEN, tokens=tmp_path / "tokens", open_health=False)

    def get(address, path):
        with closing(HTTPConnection(address, timeout=WAIT_S)) as line:
            line.request("GET", path)
            return line.getresponse().status

    async def scene():
        async with serving(models, replace(settings, http_address="127.0.0.1:0")) as address:
            statuses = [await asyncio.to_thread(get, address, path) for path in ("/healthz", "/readyz", "/")]
        assert statuses == [401, 401, 200]
        async with serving(models, settings) as address, grpc.aio.insecure_channel(address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            metadata = Access(token=token).metadata()
            assert (await stub.Check(health_pb2.HealthCheckRequest(), metadata=metadata)).status == 1
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Check(health_pb2.HealthCheckRequest())
            assert caught.value.code().name == "UNAUTHENTICATED"
        async with (
            serving(models, replace(OPEN, reflection=False)) as address,
            grpc.aio.insecure_channel(address) as channel,
        ):
            assert await _reflected(channel) == "UNIMPLEMENTED"

    asyncio.run(scene())


@pytest.mark.parametrize("is_stream", [False, True])
def test_rate_of_a_token_holds_for_calls_and_for_messages_of_a_stream(models, tmp_path, is_stream):
    """The burst is one second's worth; what is beyond it is told when to come back; other tokens are not concerned."""
    (slow, slow_line), (fast, fast_line) = new_token("slow", requests_per_s=0.01), new_token("fast")
    (tmp_path / "tokens").write_text(f"{slow_line}\n{fast_line}\n")
    request = pb.ClassifyRequest(images=[tiny_bundle.picture("red")])

    async def ask(stub, metadata):
        if not is_stream:
            return [await stub.Classify(request, metadata=metadata) for _ in range(2)]
        return [answer async for answer in stub.ClassifyStream([request] * 2, metadata=metadata)]

    async def scene():
        settings = replace(OPEN, tokens=tmp_path / "tokens")
        async with serving(models, settings) as address, grpc.aio.insecure_channel(address, NO_RETRY) as channel:
            stub = classifier_pb2_grpc.ClassifierStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await ask(stub, Access(token=slow).metadata())
            assert len(await ask(stub, Access(token=fast).metadata())) == 2
        return caught.value

    error = asyncio.run(scene())
    assert error.code().name == "RESOURCE_EXHAUSTED"
    (detail,) = Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"]).details
    assert detail.Unpack(info := RetryInfo())
    assert info.retry_delay.ToSeconds() > 90  # the next is due in 100 s: sooner it would be refused again


def test_token_command_prints_what_both_sides_need(models, tmp_path):
    """The printed line lets in the printed token, also from the command line."""
    done = command("token", "alice", "--rate", 50)
    token, line = (text.split(maxsplit=1)[1] for text in done.stdout.splitlines())
    (tmp_path / "tokens").write_text(line)
    assert line.endswith(":50")

    async def scene():
        async with serving(models, replace(OPEN, tokens=tmp_path / "tokens")) as address:
            (tmp_path / "red.png").write_bytes(tiny_bundle.picture("red"))
            words = ("classify", tmp_path / "red.png", "--address", address, "--json")
            without = await asyncio.to_thread(command, *words)
            return without, await asyncio.to_thread(command, *words, "--token", token)

    without, given = asyncio.run(scene())
    assert (without.returncode, len(without.stderr.splitlines())) == (1, 1)
    assert "CALOTYPE_TOKEN" in without.stderr
    assert given.returncode == 0
    assert (command("token", "a:b").returncode, command("token", "a b").stdout) == (2, "")


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "example.com:0"])
def test_listening_in_the_open_is_asked_for(models, address):
    """Anything but loopback wants TLS or --insecure."""

    async def scene():
        async with serving(models, replace(OPEN, address=address)):
            pytest.fail("it listens")

    with pytest.raises(StartupError, match=r"--tls-cert.*--insecure"):
        asyncio.run(scene())


def test_insecure_listens_everywhere(models):
    """Where it is said."""

    async def scene():
        async with serving(models, replace(OPEN, address="0.0.0.0:0", insecure=True)) as address:
            return await outcome(address)

    assert asyncio.run(scene()) == "red"


def test_http_is_closed_like_grpc(models, authority, tmp_path):
    """The same certificate, client certificates, tokens and rates; health is open; a renewal counts at once."""
    (token, line), (cert, key) = new_token("alice", requests_per_s=0.01), authority.issue(tmp_path / "server")
    (tmp_path / "tokens").write_text(str(line))
    settings = replace(OPEN, tls_cert=cert, tls_key=key, tls_client_ca=authority.pem, tokens=tmp_path / "tokens")
    other = Authority(tmp_path / "other")

    def get(address, path, *, ca=authority.pem, shown=True, **headers):
        context = ssl.create_default_context(cafile=ca)
        if shown:
            context.load_cert_chain(*authority.issue(tmp_path / "client"))
        with closing(HTTPSConnection(address, timeout=WAIT_S, context=context)) as line:
            line.request("GET", path, headers=headers)
            answer = line.getresponse()
            return answer.status, dict(answer.headers), answer.read()

    async def scene():
        async with serving(models, replace(settings, http_address="127.0.0.1:0")) as address:

            async def ask(path, **options):
                return await asyncio.to_thread(get, address, path, **options)

            right = {"Authorization": f"Bearer {token}"}
            assert (await ask("/readyz"))[0] == 200
            for path in ("/metrics", "/v1/models", "/none"):
                status, headers, body = await ask(path, Authorization="Bearer x")
                assert (status, headers["www-authenticate"]) == (401, "Bearer")
                assert b"UNAUTHENTICATED" in body
            assert (await ask("/"))[0] == 200  # the page, which asks for a token itself
            assert (await ask("/v1/models", **right))[0] == 200
            status, headers, _ = await ask("/v1/models", **right)
            assert (status, int(headers["retry-after"]) > 0) == (429, True)
            with pytest.raises(OSError, match=r"CERTIFICATE_REQUIRED|certificate required|reset|EOF|closed"):
                await ask("/readyz", shown=False)
            for new, place in zip(other.issue(tmp_path / "new"), (cert, key), strict=True):
                new.replace(place)
            assert (await ask("/readyz", ca=other.pem))[0] == 200

    asyncio.run(scene())


def test_callers_who_never_greet_stay_within_the_limit_of_connections(models, authority, tmp_path):
    """A handshake under way is a connection: far beyond the limit they are hung up on, and none holds up the exit."""
    cert, key = authority.issue(tmp_path / "server")
    settings = replace(OPEN, http_address="127.0.0.1:0", max_connections=2, tls_cert=cert, tls_key=key)

    async def scene():
        async with serving(models, settings) as address:
            lines = [await asyncio.open_connection(*address.split(":")) for _ in range(60)]
            reading = [asyncio.create_task(_ended(reader)) for reader, _ in lines]
            async with asyncio.timeout(8):  # sooner than a handshake's own limit
                while sum(task.done() for task in reading) < 60 - 2 - 33:
                    await asyncio.wait(reading, return_when=asyncio.FIRST_COMPLETED, timeout=0.05)
            assert not all(task.done() for task in reading)
        async with asyncio.timeout(8):
            await asyncio.gather(*reading)
        for _, writer in lines:
            writer.close()

    asyncio.run(scene())


async def _ended(reader):
    """Wait until the other side has hung up, in whichever way."""
    with suppress(ConnectionError):
        await reader.read()


def test_a_client_whose_authority_was_withdrawn_is_let_in_no_more(models, authority, tmp_path):
    """Neither anew nor by resuming its session over HTTP. With TLS 1.2, which resumes all the same, nobody is."""
    (cert, key), trusted = authority.issue(tmp_path / "server"), tmp_path / "clients.pem"
    trusted.write_bytes(authority.pem.read_bytes())
    context, older = (ssl.create_default_context(cafile=authority.pem) for _ in range(2))
    for one in (context, older):
        one.load_cert_chain(*authority.issue(tmp_path / "client"))
    older.maximum_version = ssl.TLSVersion.TLSv1_2
    settings = replace(OPEN, http_address="127.0.0.1:0", tls_cert=cert, tls_key=key, tls_client_ca=trusted)

    def greet(address, session=None, context=context):
        host, _, number = address.rpartition(":")
        with (
            socket.create_connection((host, int(number)), timeout=WAIT_S) as plain,
            context.wrap_socket(plain, server_hostname=host, session=session) as line,
        ):
            line.sendall(b"GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n")
            if not (answer := line.recv(12)):
                raise ConnectionResetError
            return answer, line.session

    async def scene():
        async with serving(models, settings) as address:
            answer, session = await asyncio.to_thread(greet, address)
            assert answer == b"HTTP/1.1 200"
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await asyncio.to_thread(greet, address, None, older)
            Authority(tmp_path / "other").pem.replace(trusted)
            for kept in (None, session):
                with pytest.raises((ssl.SSLError, ConnectionError)):
                    await asyncio.to_thread(greet, address, kept)

    asyncio.run(scene())


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2])
def test_a_clients_session_is_not_resumed_over_grpc(models, authority, tmp_path, newest):
    """Its certificate, which may have ended since, would not be looked at again. It is welcome with a new one."""
    cert, key = authority.issue(tmp_path / "server")
    context = ssl.create_default_context(cafile=authority.pem)
    context.load_cert_chain(*authority.issue(tmp_path / "client"))
    context.maximum_version = newest
    context.set_alpn_protocols(["h2"])

    def greet(port, session=None):
        with (
            socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1", session=session) as line,
        ):
            line.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
            assert line.recv(9)[3] == 4  # SETTINGS: let in, and what would be resumed has come before
            return line.session, line.session_reused

    async def scene():
        settings = replace(OPEN, tls_cert=cert, tls_key=key, tls_client_ca=authority.pem)
        async with serving(models, settings) as address:
            port = int(address.rpartition(":")[2])
            session, _ = await asyncio.to_thread(greet, port)
            for _ in range(3):
                session, is_resumed = await asyncio.to_thread(greet, port, session)
                assert not is_resumed

    asyncio.run(scene())


def test_the_live_view_shows_certificate_and_token(models, authority, tmp_path):
    """As the other commands do; without the token it says so, and half of TLS is refused before anything is sent."""
    (token, line), (cert, key) = new_token("alice", requests_per_s=0), authority.issue(tmp_path / "server")
    (tmp_path / "tokens").write_text(str(line))
    settings = replace(OPEN, tls_cert=cert, tls_key=key, tls_client_ca=authority.pem, tokens=tmp_path / "tokens")
    own_cert, own_key = authority.issue(tmp_path / "client")
    shown = Access(tls_ca=authority.pem, tls_cert=own_cert, tls_key=own_key, token=token)

    async def scene():
        async with serving(models, replace(settings, http_address="127.0.0.1:0")) as address:
            reading = await asyncio.to_thread(read, address, shown)
            assert reading.values("calotype_model_info", "model") == ["colours"]
            with pytest.raises(ClientError, match="Unauthorized"):
                await asyncio.to_thread(read, address, replace(shown, token="x"))
            with pytest.raises(ClientError, match=r"certificate|CERTIFICATE|reset|EOF|closed"):
                await asyncio.to_thread(read, address, replace(shown, tls_cert=None, tls_key=None))

    asyncio.run(scene())
    with pytest.raises(SettingsError, match="PEM"):
        read("localhost:1", replace(shown, tls_ca=tmp_path / "tokens"))


def test_http_in_the_open_is_asked_for_too(models):
    """Even where gRPC itself stays on this machine."""

    async def scene():
        async with serving(models, replace(OPEN, http_address="0.0.0.0:0")):
            pytest.fail("it listens")

    with pytest.raises(StartupError, match=r"--tls-cert.*--insecure"):
        asyncio.run(scene())


def test_a_limited_caller_hears_why_at_once_where_there_is_no_time_to_wait(models, tmp_path):
    """The gRPC library would wait for the whole deadline, and say DEADLINE_EXCEEDED."""
    token, line = new_token("slow", requests_per_s=0.01)
    (tmp_path / "tokens").write_text(str(line))

    def ask(address):
        with Client(address, access=Access(token=token)) as client:
            client.classify([tiny_bundle.picture("red")])
            with pytest.raises(ClientError, match=r"slow: more than 0\.01 requests/s") as caught:
                client.classify([tiny_bundle.picture("red")], timeout_s=60)
        return caught.value.status

    async def scene():
        async with serving(models, replace(OPEN, tokens=tmp_path / "tokens")) as address:
            return await asyncio.to_thread(ask, address)

    assert asyncio.run(scene()) == "RESOURCE_EXHAUSTED"


def test_a_clients_own_files_are_not_blamed_on_the_server(authority, tmp_path):
    """What is no certificate, a key of another one, a key with a password: each before anything is asked."""
    cert, key = authority.issue(tmp_path / "own")
    _, other = authority.issue(tmp_path / "other")
    (tmp_path / "none.pem").write_text("no PEM")
    locked = tmp_path / "locked.key"
    loaded = load_pem_private_key(key.read_bytes(), None)
    locked.write_bytes(loaded.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"word")))
    for access, wanted in (
        (Access(tls_ca=tmp_path / "none.pem"), "none.pem"),
        (Access(tls_ca=authority.pem, tls_cert=cert, tls_key=other), "other.key"),
        (Access(tls_ca=authority.pem, tls_cert=cert, tls_key=locked), "has a password"),
    ):
        for open_it in (partial(access.channel, "127.0.0.1:1"), access.tls_context):
            with pytest.raises(SettingsError, match=wanted):
                open_it()


def test_a_servers_key_with_a_password_is_one_line(models, authority, tmp_path):
    """Nobody is asked for it on a terminal."""
    cert, key = authority.issue(tmp_path / "own")
    loaded = load_pem_private_key(key.read_bytes(), None)
    key.write_bytes(loaded.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"word")))
    assert "the key has a password" in refusal(models, "--tls-cert", cert, "--tls-key", key)


@pytest.mark.parametrize("option", ["--address", "--http-address"])
def test_an_address_without_a_port_is_told_as_such(models, option):
    """And not that it can be reached from other machines."""
    assert refusal(models, option, "localhost") == "localhost: found no port, wanted host:port"


def test_a_request_is_logged_with_the_name_of_its_token(models, tmp_path, capfd):
    """At both doors: whose requests are refused is what an operator asks."""
    token, line = new_token("alice")
    (tmp_path / "tokens").write_text(str(line))

    def ask(server):
        with pytest.raises(grpc.RpcError, match="INVALID_ARGUMENT"), grpc.insecure_channel(server) as channel:
            classifier_pb2_grpc.ClassifierStub(channel).Classify(
                pb.ClassifyRequest(), timeout=WAIT_S, metadata=Access(token=token).metadata()
            )

    async def scene():
        for http in ("off", "127.0.0.1:0"):
            settings = replace(OPEN, tokens=tmp_path / "tokens", http_address=http)
            async with serving(models, settings) as address:
                if http == "off":
                    await asyncio.to_thread(ask, address)
                    continue
                asked = urllib.request.Request(
                    f"http://{address}/v1/classify", b"", dict(Access(token=token).metadata()), method="POST"
                )
                with pytest.raises(urllib.error.HTTPError, match="400"):
                    await asyncio.to_thread(urllib.request.urlopen, asked)

    asyncio.run(scene())
    lines = [line for line in capfd.readouterr().out.splitlines() if "INVALID_ARGUMENT" in line]
    assert len(lines) == 2
    assert all("caller=alice" in line for line in lines)


def test_tls_connections_that_come_and_go_leave_room_for_others(models, authority, tmp_path):
    """Far more than may be at once, one after the other."""
    cert, key = authority.issue(tmp_path / "server")
    settings = replace(OPEN, tls_cert=cert, tls_key=key, http_address="127.0.0.1:0", max_connections=2)
    context = Access(tls_ca=authority.pem).tls_context()

    def ask(address):
        found = []
        for _ in range(50):
            with closing(HTTPSConnection(address, context=context, timeout=WAIT_S)) as connection:
                connection.request("GET", "/healthz")
                found.append(connection.getresponse().status)
        return set(found)

    async def scene():
        async with serving(models, settings) as address:
            return await asyncio.to_thread(ask, address)

    assert asyncio.run(scene()) == {200}


def test_a_moment_without_descriptors_does_not_close_the_tls_door(models, authority, tmp_path, monkeypatch):
    """Who comes after it is let in."""
    cert, key = authority.issue(tmp_path / "server")
    settings = replace(OPEN, tls_cert=cert, tls_key=key, http_address="127.0.0.1:0")
    context, failed = Access(tls_ca=authority.pem).tls_context(), []

    def ask(address):
        with closing(HTTPSConnection(address, context=context, timeout=WAIT_S)) as connection:
            connection.request("GET", "/healthz")
            return connection.getresponse().status

    async def scene():
        loop = asyncio.get_running_loop()
        accept = loop.sock_accept

        async def fail_once(listener):
            if not failed:
                failed.append(listener)
                raise OSError(errno.EMFILE, "Too many open files")
            return await accept(listener)

        monkeypatch.setattr(loop, "sock_accept", fail_once)
        async with serving(models, settings) as address:
            return await asyncio.to_thread(ask, address)

    assert asyncio.run(scene()) == 200
    assert failed


def test_a_caller_who_never_greets_is_hung_up_on(models, authority, tmp_path, monkeypatch):
    """By the limit of a handshake, though there is room for more."""
    monkeypatch.setattr("serving.greetings._GREETING_S", 0.2)
    cert, key = authority.issue(tmp_path / "server")
    settings = replace(OPEN, tls_cert=cert, tls_key=key, http_address="127.0.0.1:0")

    async def scene():
        async with serving(models, settings) as address:
            reader, writer = await asyncio.open_connection(*address.split(":"))
            async with asyncio.timeout(WAIT_S):
                await _ended(reader)
            writer.close()

    asyncio.run(scene())


def test_one_of_several_workers_listens_when_it_can_answer(models):
    """The system gives it connections from that moment on; others would have answered them."""
    settings, metrics = replace(OPEN, workers=2), Metrics()
    loading, may_load = threading.Event(), threading.Event()

    def load_late(folder):
        loading.set()
        assert may_load.wait(WAIT_S)
        return load_model(folder, settings, metrics=metrics)

    async def scene():
        server = Server(Catalogue(models, load_late), settings, metrics=metrics)
        starting = asyncio.create_task(server.startup())
        try:
            assert await asyncio.to_thread(loading.wait, WAIT_S)
            before = server.port
            may_load.set()
            await starting
            return before, server.port
        finally:
            await server.shutdown()

    before, after = asyncio.run(scene())
    assert before == 0 < after


def test_a_renewal_that_does_not_fit_is_told(authority, tmp_path):
    """Else the certificate that stays would end one day, and nobody knew why."""
    (cert, key), (_, other_key) = authority.issue(tmp_path / "server"), authority.issue(tmp_path / "other")
    with structlog.testing.capture_logs() as lines:
        assert next_context(TlsFiles(cert=cert, key=key), WatchedFiles([])) is not None
        assert next_context(TlsFiles(cert=cert, key=other_key), WatchedFiles([])) is None
    assert [(line["log_level"], line["event"]) for line in lines] == [
        ("info", "certificate read"),
        ("error", "certificate refused, the one before it stays"),
    ]


@pytest.mark.parametrize(
    ("begins_d", "ends_d", "events"),
    [
        (-90, -1, ["certificate is not valid now, clients will refuse it"]),
        (1, 90, ["certificate is not valid now, clients will refuse it"]),
        (-1, 10, ["certificate ends soon"]),
        (-1, 60, []),
    ],
)
def test_a_certificate_that_clients_refuse_by_its_dates_is_told(tmp_path, begins_d, ends_d, events):
    """Nobody on this side would notice."""
    now, name = datetime.now(UTC), x509.Name([])
    key = ec.generate_private_key(ec.SECP256R1())
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    made = made.not_valid_before(now + timedelta(days=begins_d)).not_valid_after(now + timedelta(days=ends_d))
    (tmp_path / "cert").write_bytes(made.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    with structlog.testing.capture_logs() as lines:
        tell_validity(TlsFiles(cert=tmp_path / "cert", key=tmp_path / "key"))
    assert [line["event"] for line in lines] == events


def test_a_certificate_that_ends_while_a_server_runs_is_told(tmp_path, monkeypatch):
    """A renewal that does not come changes no file."""
    monkeypatch.setattr("serving.tls._TELL_EVERY_S", 0.01)
    told = asyncio.Event()
    monkeypatch.setattr("serving.tls.tell_validity", lambda _: loop.call_soon_threadsafe(told.set))

    async def scene():
        nonlocal loop
        loop = asyncio.get_running_loop()
        telling = asyncio.create_task(keep_telling_validity(TlsFiles(cert=tmp_path / "cert", key=tmp_path / "key")))
        for _ in range(2):
            await asyncio.wait_for(told.wait(), WAIT_S)
            told.clear()
        telling.cancel()

    loop = None
    asyncio.run(scene())


def test_a_pipe_is_no_certificate(authority, tmp_path):
    """It would be waited for, by both doors; and what a shell makes of <(…) is read only once."""
    cert, key = authority.issue(tmp_path / "server")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for files in (TlsFiles(cert=pipe, key=key), TlsFiles(cert=cert, key=key, client_ca=pipe)):
        with pytest.raises(StartupError, match="pipe is no regular file; wanted PEM files"):
            first_context(files)


def test_a_renewal_that_could_not_be_read_just_now_is_read_later(authority, tmp_path, monkeypatch):
    """No descriptor was left at the first handshake after it."""
    cert, key = authority.issue(tmp_path / "server")
    files, loaded = TlsFiles(cert=cert, key=key), []

    def load(*_, **__):
        loaded.append(len(loaded))
        if loaded == [0, 1]:
            raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("serving.tls.load_pair", load)
    choose = http_context(files).sni_callback
    os.utime(cert, (0, 0))
    for _ in range(4):
        choose(SimpleNamespace(), None, None)
    assert loaded == [0, 1, 2]
