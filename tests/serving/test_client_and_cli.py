"""The client and the commands against a real server process."""

import asyncio
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import grpc
import pytest
import tiny_bundle
from running import until
from test_process import ENVIRONMENT, port, process

from protos import classifier_pb2 as pb
from protos import classifier_pb2_grpc, open_inference_pb2_grpc
from protos import open_inference_pb2 as v2
from serving.answers import enum_name
from serving.bench import percentile
from serving.client import _OPTIONS, AsyncClient, Client
from serving.errors import ClientError, SettingsError
from serving.settings import ServerSettings
from serving.variables import mistyped_variables


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A running server."""
    models = tmp_path_factory.mktemp("served")
    tiny_bundle.write(models)
    with process(models) as started:
        yield f"127.0.0.1:{port(started)}"


@pytest.fixture
def red(tmp_path):
    """A red picture's file."""
    path = tmp_path / "red.png"
    path.write_bytes(tiny_bundle.picture("red"))
    return path


def command(*words, environment=MappingProxyType({})):
    line, variables = [sys.executable, "-m", "serving", *map(str, words)], {**ENVIRONMENT, **environment}
    return subprocess.run(line, capture_output=True, text=True, env=variables, timeout=60, check=False)


def test_asyncio_client_gives_the_same_answers(address):
    """One bad picture carries its error in both."""
    images = [tiny_bundle.picture("blue"), b"GIF89a"]

    async def ask():
        async with AsyncClient(address) as client:
            return await client.classify(images, top_k=2), await client.models()

    with Client(address) as client:
        assert asyncio.run(ask()) == (client.classify(images, top_k=2), client.models())
        good, bad = client.classify(images, top_k=2).results
    assert good.predictions[0].label == "blue"
    assert bad.error.code in ("CORRUPT", "TRUNCATED")


def test_client_error_names_address_and_next_step(address):
    """An absent server and a wrong model, each with its status."""
    with (
        Client("127.0.0.1:1") as client,
        pytest.raises(ClientError, match=r"127\.0\.0\.1:1: .*is it running") as caught,
    ):
        client.classify([b"x"], timeout_s=5)
    assert caught.value.status == "UNAVAILABLE"
    with Client(address) as client, pytest.raises(ClientError, match="roses") as caught:
        client.classify([b"x"], model="roses")
    assert caught.value.status == "NOT_FOUND"


def test_classify_command_writes_json(address, red):
    """One record a picture on stdout."""
    done = command("classify", red, "--address", address, "--json", "--top-k", 1)
    (record,) = json.loads(done.stdout)
    assert (done.returncode, record["predictions"][0]["label"], record["image"]) == (0, "red", str(red))


def test_classify_command_says_what_is_unknown(address, red, tmp_path):
    """In the table and in JSON; the client tells the threshold."""
    other = tmp_path / "other.png"
    other.write_bytes(tiny_bundle.foreign())
    table = command("classify", red, other, "--address", address).stdout
    assert table.count("unknown,") == 1
    records = json.loads(command("classify", red, other, "--address", address, "--json").stdout)
    assert [record["unknown"] for record in records] == [False, True]
    with Client(address) as client:
        assert client.models()[0].unknown_below == 0.5


def test_a_name_with_brackets_is_printed_as_it_is(address, red, tmp_path):
    """It is no markup."""
    path = tmp_path / "[" / "red] photo[a].png"
    path.parent.mkdir()
    shutil.copy(red, path)
    done = command("classify", str(path), "--address", address)
    assert done.returncode == 0, done.stderr
    assert "photo[a].png" in done.stdout


def test_missing_picture_is_one_line_and_exit_2(address, tmp_path):
    """User errors have no traceback."""
    done = command("classify", tmp_path / "none.png", "--address", address)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert "none.png" in done.stderr


def test_a_picture_whose_name_is_no_utf8_is_classified(address, tmp_path):
    """The name is shown with its bytes escaped, in the table and in JSON."""
    named = Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9.png"))
    named.write_bytes(tiny_bundle.picture("red"))
    for options in ((), ("--json",)):
        done = command("classify", named, "--address", address, *options)
        assert (done.returncode, done.stderr) == (0, "")
        assert "red" in done.stdout


def test_words_that_are_no_utf8_are_one_line_and_exit_2(address, red):
    """A model, a service and an address of which protobuf and gRPC can make nothing."""
    for words in (
        ("classify", red, "--address", address, "--model", "\udcff"),
        ("health", "--address", address, "--service", "\udcff"),
        ("health", "--address", "\udcff:1"),
    ):
        done = command(*words)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "UTF-8" in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("words", [("classify", "--json"), ("classify",), ("health",), ("run", "--help")])
def test_a_full_disk_behind_stdout_is_one_line_and_exit_1(address, red, words):
    """Answers that cannot be written were not given."""
    more = {"classify": (red, "--address", address), "health": ("--address", address)}.get(words[0], ())
    with Path("/dev/full").open("w") as full:
        line = [sys.executable, "-m", "serving", *map(str, (*words, *more))]
        done = subprocess.run(
            line, stdout=full, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, timeout=60, check=False
        )
    assert (done.returncode, done.stderr) == (1, "stdout: No space left on device; wanted to write there\n")


@pytest.mark.parametrize(("options", "requests"), [(("--concurrency", 3), 20), (("--rate", 200), 20)])
def test_bench_counts_every_request(address, red, options, requests):
    """Both loops."""
    done = command("bench", red, "--address", address, "--requests", requests, "--json", *options)
    measured = json.loads(done.stdout)
    assert (done.returncode, measured["requests"], measured["errors"]) == (0, requests, {})
    assert 0 < measured["p50_ms"] <= measured["p90_ms"] <= measured["p99_ms"]


@pytest.mark.parametrize("options", [("--concurrency", 3), ("--rate", 200)])
def test_bench_measures_nothing_of_its_warm_up(address, red, options):
    """Both loops; what was answered in all is told, for the server's CPU a picture."""
    window = ("--warm-up", 0.5, "--seconds", 0.5)
    done = command("bench", red, "--address", address, *window, "--requests", 20, "--json", *options)
    measured = json.loads(done.stdout)
    assert (measured["requests"], measured["errors"]) == (20, {})
    assert measured["answered"] > 20
    assert measured["seconds"] <= 0.5


def test_bench_does_not_count_what_its_warm_up_was_refused(red):
    """Of some 40 calls to a server that is not there, half."""
    window = ("--warm-up", 1, "--seconds", 1, "--rate", 20)
    done = command("bench", red, "--address", "127.0.0.1:1", *window, "--json")
    measured = json.loads(done.stdout)
    assert (done.returncode, measured["answered"]) == (1, 0)
    assert measured["errors"] == {"UNAVAILABLE": measured["requests"]}
    assert 0 < measured["requests"] <= 30


def test_bench_with_a_warm_up_counts_what_was_answered_while_it_measured(address, red):
    """Callers go on before and after, so a window of half a second has no ends of its own."""
    done = command("bench", red, "--address", address, "--warm-up", 0.2, "--seconds", 0.5, "--json")
    measured = json.loads(done.stdout)
    assert measured["seconds"] == 0.5
    # of those due in it the first was due, and the last answered, at most one latency outside
    assert abs(measured["pictures_per_s"] * 0.5 - measured["requests"]) <= 1
    assert measured["answered"] > measured["requests"]


def test_bench_of_no_server_says_so_and_tries_it_now_and_then(red):
    """Two callers, for half a second: a hundredth of what could be sent."""
    done = command("bench", red, "--address", "127.0.0.1:1", "--concurrency", 2, "--seconds", 0.5, "--json")
    measured = json.loads(done.stdout)
    assert (done.returncode, measured["pictures_per_s"]) == (1, 0)
    assert set(measured["errors"]) == {"UNAVAILABLE"}
    assert measured["requests"] <= 12
    assert "no picture was answered; is it running" in done.stderr


def test_the_port_of_http_is_told_from_none(tmp_path):
    """The library's own words are about frames."""
    tiny_bundle.write(tmp_path)
    with process(tmp_path, "--http-address", "127.0.0.1:0") as started:
        done = command("health", "--address", f"127.0.0.1:{port(started, 'http_port')}", "--timeout", 20)
    assert done.returncode == 1
    assert done.stderr.endswith("; that port speaks HTTP, wanted the one of gRPC, usually 50051\n")


def test_health_command_exits_0_or_1(address):
    """As a container's health check wants it."""
    assert command("health", "--address", address).returncode == 0
    assert command("health", "--address", address, "--service", "colours").stdout == "SERVING\n"
    nobody = command("health", "--address", "127.0.0.1:1")
    assert nobody.returncode == 1
    assert "is it running" in nobody.stderr
    unknown = command("health", "--address", address, "--service", "shades")
    assert (unknown.returncode, unknown.stderr) == (1, f"{address}: shades: no such service, model or version\n")


def test_every_setting_is_a_flag_and_a_variable():
    """`run --help` shows them all, whole also where a terminal is narrow."""
    done = subprocess.run(
        [sys.executable, "-m", "serving", "run", "--help"],
        capture_output=True,
        text=True,
        env={**ENVIRONMENT, "COLUMNS": "80", "TERMINAL_WIDTH": "80"},
        check=True,
    )
    for name in ServerSettings.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in done.stdout
        assert f"CALOTYPE_{name.upper()}" in done.stdout


def test_a_variable_that_is_nearly_one_of_ours_is_told():
    """Not those that a cluster sets for a service of our name, nor a client's."""
    ours = ["CALOTYPE_WATCH_S", "CALOTYPE_TOKEN", "CALOTYPE_TOKENS", "CALOTYPE_CLIENT_TLS_KEY", "CALOTYPE_MODELS"]
    cluster = ["CALOTYPE_SERVICE_HOST", "CALOTYPE_PORT", "CALOTYPE_PORT_50051_TCP_ADDR", "PATH"]
    names = [*ours, *cluster, "CALOTYPE_WATCHS", "CALOTYPE_KEPT"]
    mistyped = [("CALOTYPE_KEPT", "CALOTYPE_KEEP"), ("CALOTYPE_WATCHS", "CALOTYPE_WATCH_S")]
    assert list(mistyped_variables(names, has_tokens=True)) == mistyped


def test_a_clients_token_is_no_servers_tokens(tmp_path):
    """One letter less lets everybody in."""
    assert list(mistyped_variables(["CALOTYPE_TOKEN"], has_tokens=False)) == [("CALOTYPE_TOKEN", "CALOTYPE_TOKENS")]
    options = ("run", tmp_path / "none", "--log-format", "json")
    assert "CALOTYPE_TOKENS" in command(*options, environment={"CALOTYPE_TOKEN": "x"}).stderr
    given = {"CALOTYPE_TOKEN": "x", "CALOTYPE_TOKENS": str(tmp_path / "tokens")}
    assert "unknown variable" not in command(*options, environment=given).stderr


def test_a_level_of_the_log_may_be_in_capitals(tmp_path):
    """As the variable for it is in most programs; it gets as far as the folder, which is empty."""
    done = command("run", tmp_path / "none", "--log-level", "ERROR")
    assert (done.returncode, "wanted a folder" in done.stderr) == (1, True)


def test_settings_that_contradict_one_another_are_refused():
    """A request that is allowed must fit into the queue."""
    with pytest.raises(SettingsError, match="--max-queue-images"):
        ServerSettings(max_images_per_request=300)


def test_percentile_is_a_value_that_was_measured():
    """Nearest rank."""
    assert [percentile([1, 2, 3, 4], share) for share in (0.5, 0.9, 0.99)] == [2, 4, 4]


def test_a_client_soon_finds_a_server_that_is_back():
    """gRPC waits up to two minutes: calls failed for 5 s after an outage of 20 s, for 12 s after one of 90 s."""
    assert dict(_OPTIONS)["grpc.max_reconnect_backoff_ms"] <= 2000


def test_health_says_why_it_got_no_answer():
    """Status on stdout, for scripts; the reason on stderr, for people."""
    done = command("health", "--address", "127.0.0.1:1")
    assert (done.returncode, done.stdout) == (1, "UNAVAILABLE\n")
    assert "refused" in done.stderr


def test_long_names_and_statuses_are_printed_whole(address, red, tmp_path):
    """In a pipe too, where a table has 80 columns."""
    folder = tmp_path / ("a-long-folder-name-" * 6)
    folder.mkdir()
    shutil.copy(red, folder / "red.png")
    told = command("classify", folder / "red.png", "--address", address).stdout
    assert str(folder / "red.png") in "".join(part.strip("\u2502 ") for part in column(told))


def column(table):
    """The first cell of each line of a table."""
    return [line.split("\u2502")[1].strip() for line in table.splitlines() if line.startswith("\u2502")]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"images": tiny_bundle.picture("red")}, "found one bytes, wanted a sequence"),
        ({"images": [Path("red.png")]}, "wanted images as bytes"),
        ({"top_k": -1}, "Value out of range: -1"),
        ({"model": "\udcff"}, "found what is no UTF-8"),
        ({"timeout_s": math.nan}, "timeout_s: found nan, wanted more than 0"),
        ({"timeout_s": 0}, "timeout_s: found 0, wanted more than 0"),
        ({"timeout_s": None}, "timeout_s: found None, wanted more than 0"),
    ],
)
def test_a_misused_client_says_what_was_wrong(address, fields, words):
    """As a ClientError, from both clients."""
    asked = {"images": [tiny_bundle.picture("red")], **fields}

    async def ask():
        async with AsyncClient(address) as client:
            await client.classify(**asked)

    with Client(address) as client, pytest.raises(ClientError, match=re.escape(words)) as caught:
        client.classify(**asked)
    assert caught.value.status == "INVALID_ARGUMENT"
    with pytest.raises(ClientError, match=re.escape(words)):
        asyncio.run(ask())


@pytest.mark.parametrize("timeout_s", [math.inf, 1e300, 1e10])
def test_a_time_that_never_comes_is_no_deadline(address, timeout_s):
    """gRPC would take it for one that has passed."""
    with Client(address) as client:
        assert client.classify([tiny_bundle.picture("red")], timeout_s=timeout_s).results[0].predictions


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_whatever_holds_bytes_is_a_picture(address, kind):
    """As from a camera's buffer."""
    with Client(address) as client:
        assert client.classify([kind(tiny_bundle.picture("red"))]).results[0].predictions[0].label == "red"


class Hesitant(classifier_pb2_grpc.ClassifierServicer):
    """Refuses with a status as often as it is told to, then answers; a forgetful one leaves its results out."""

    def __init__(self, code, *, times, details="", push_back="", forgets=False):
        self._code, self._left, self._details, self._push_back = code, times, details, push_back
        self._forgets = forgets
        self.calls = 0

    def Classify(self, request, context):  # noqa: N802 -- rpc
        self.calls += 1
        if self.calls > self._left:
            results = [] if self._forgets else [pb.ImageResult() for _ in request.images]
            return pb.ClassifyResponse(results=results, model="colours", version="1")
        if self._push_back:
            context.set_trailing_metadata((("grpc-retry-pushback-ms", self._push_back),))
        return context.abort(self._code, self._details)


@contextmanager
def hesitant(code, **options):
    """Such a server; the servicer, and a client of it."""
    servicer, server = Hesitant(code, **options), grpc.server(ThreadPoolExecutor(2))
    classifier_pb2_grpc.add_ClassifierServicer_to_server(servicer, server)
    port_number = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        servicer.address = f"127.0.0.1:{port_number}"
        with Client(servicer.address) as client:
            yield servicer, client
    finally:
        server.stop(None).wait()


def test_a_server_that_leaves_a_picture_out_is_told(red):
    """Another program's, perhaps."""
    with hesitant(grpc.StatusCode.OK, times=0, forgets=True) as (servicer, client):
        with pytest.raises(ClientError, match="0 results for 1 images; is this a Calotype server") as caught:
            client.classify([b"x"])
        assert caught.value.status == "UNKNOWN"
        done = command("bench", red, "--address", servicer.address, "--requests", "3", "--json")
    assert (done.returncode, json.loads(done.stdout)["errors"]) == (1, {"0 results": 3})


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("text", "words"),
    [("localhost:65537", "found port 65537"), ("localhost", "found no port"), ("", "found no port")],
)
def test_a_port_that_is_none_calls_no_other(kind, text, words):
    """gRPC would call port 1, 443, and nothing."""
    with pytest.raises(SettingsError, match=words):
        kind(text)


@pytest.mark.parametrize(
    "text", ["dns:///localhost:1", "dns:127.0.0.1:1", "ipv4:127.0.0.1:1", "unix:/tmp/none", "[::1]:1"]
)
def test_grpcs_own_names_are_left_to_it(text):
    """They may have no port, or mean several places."""
    with Client(text) as client, pytest.raises(ClientError) as caught:
        client.models(timeout_s=0.2)
    assert caught.value.status in ("UNAVAILABLE", "DEADLINE_EXCEEDED")


def test_bench_sends_nothing_again_that_could_never_be_answered(address, red):
    """It says why, as classify does."""
    words = ("--address", address, "--model", "roses", "--seconds", "30")
    done = command("bench", red, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"{address}: NOT_FOUND: no model 'roses'")


@pytest.mark.parametrize("status", ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "CANCELLED"])
def test_a_client_tries_again_also_with_photographs(status):
    """gRPC itself keeps 256 KB for that; four more times, and no more."""
    with hesitant(grpc.StatusCode[status], times=2, push_back="1") as (servicer, client):
        assert client.classify([bytes(2**20)], timeout_s=20).version == "1"
        assert servicer.calls == 3
    with hesitant(grpc.StatusCode[status], times=9, push_back="1") as (servicer, client):
        with pytest.raises(ClientError) as caught:
            client.classify([b"x"], timeout_s=20)
        assert (caught.value.status, servicer.calls) == (status, 5)


@pytest.mark.parametrize("status", ["INVALID_ARGUMENT", "INTERNAL", "DEADLINE_EXCEEDED", "NOT_FOUND"])
def test_a_client_does_not_try_again_what_will_not_change(status):
    """It would only cost the server."""
    with hesitant(grpc.StatusCode[status], times=1) as (servicer, client):
        with pytest.raises(ClientError):
            client.classify([b"x"], timeout_s=20)
        assert servicer.calls == 1


def test_advice_is_given_once():
    """The server's own where it gives some."""
    code = grpc.StatusCode.DEADLINE_EXCEEDED
    with (
        hesitant(code, times=1, details="it is late; allow more time") as (_, client),
        pytest.raises(ClientError, match=r"DEADLINE_EXCEEDED: it is late; allow more time$"),
    ):
        client.classify([b"x"])
    with (
        hesitant(code, times=1, details="it is late") as (_, client),
        pytest.raises(ClientError, match=r"it is late; allow more seconds, or send fewer images$"),
    ):
        client.classify([b"x"])


def test_who_cancels_a_call_of_a_closed_client_gets_a_cancellation(address):
    """Both at once: what the caller asked for counts."""

    async def scene():
        client = AsyncClient(address)
        calling = asyncio.create_task(client.classify([tiny_bundle.picture("red")]))
        await asyncio.sleep(0)
        calling.cancel()
        client._is_closed = True
        await asyncio.wait({calling})
        await client.close()
        return calling.cancelled()

    assert asyncio.run(scene())


def test_a_closed_client_says_so(address):
    """Both, and nobody's task is cancelled who did not ask for it."""

    async def ask():
        client = AsyncClient("127.0.0.1:1")
        calling = asyncio.create_task(client.classify([b"x"], timeout_s=20))
        await asyncio.wait({calling}, timeout=0.1)  # it tries to connect
        await client.close()
        with pytest.raises(ClientError, match="this client is closed") as under_way:
            await calling
        with pytest.raises(ClientError, match="this client is closed"):
            await client.models()
        return under_way.value.status

    client = Client(address)
    client.close()
    with pytest.raises(ClientError, match="this client is closed"):
        client.models()
    assert asyncio.run(ask()) == "CANCELLED"


def test_who_cancels_a_call_of_asyncio_gets_a_cancellation(address):
    """It is no error of the client's."""

    async def ask():
        async with AsyncClient("127.0.0.1:1") as client:
            calling = asyncio.create_task(client.classify([b"x"], timeout_s=20))
            await asyncio.wait({calling}, timeout=0.1)
            calling.cancel()
            await asyncio.wait({calling})
            return calling.cancelled()

    assert asyncio.run(ask())


def test_an_error_that_a_newer_server_knows_has_a_number():
    """Enums are open."""
    assert [enum_name(pb.ImageError.Code, number) for number in (1, 999)] == ["EMPTY", "999"]


def test_what_was_answered_before_one_fails_is_shown(address, red, tmp_path):
    """A file that no message can carry after a good one."""
    enormous = tmp_path / "enormous.png"
    with enormous.open("wb") as file:
        file.truncate(65 * 2**20)
    done = command("classify", red, enormous, "--address", address)
    assert (done.returncode, "red.png" in done.stdout, "enormous.png" in done.stdout) == (1, True, False)
    assert "RESOURCE_EXHAUSTED" in done.stderr


def test_a_picture_without_a_label_that_sure_is_shown_too(address, red):
    """Its row says so."""
    done = command("classify", red, "--address", address, "--min-score", "1")
    assert done.returncode == 0
    assert "no score is that high" in done.stdout


def test_a_server_on_this_machine_is_asked_without_a_proxy(tmp_path, red, monkeypatch):
    """It would get the token, and look for a server on its own machine."""
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setitem(ENVIRONMENT, name, "http://127.0.0.1:1")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delitem(ENVIRONMENT, name, raising=False)
    tiny_bundle.write(tmp_path)
    with process(tmp_path, "--http-address", "localhost:0", "--address", "localhost:0") as started:
        line = next(entry for entry in map(json.loads, started.stderr) if entry["event"] == "SERVING")
        assert command("classify", red, "--address", f"localhost:{line['port']}").returncode == 0
        assert command("top", "--once", "--address", f"localhost:{line['http_port']}").returncode == 0


def test_bench_that_is_interrupted_tells_what_it_has_measured(address, red):
    """Half an hour would be lost."""
    line = [sys.executable, "-m", "serving", "bench", str(red), "--address", address, "--seconds", "600", "--json"]
    with grpc.insecure_channel(address) as channel:
        stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)

        def count():
            return stub.ModelStatistics(v2.ModelStatisticsRequest()).model_stats[0].inference_count

        before = count()
        with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as started:
            until(lambda: count() > before + 3, what="the load")
            started.send_signal(signal.SIGINT)
            measured = json.loads(started.communicate(timeout=60)[0])
    assert (started.returncode, measured["errors"]) == (0, {})
    assert measured["requests"] >= measured["answered"] > 3
