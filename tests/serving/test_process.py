"""The server as its own process: start, classify, drain; and skewed bundles, which must stop the start."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
import tiny_bundle
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bundle.preprocess import PreprocessSpec
from bundle.signature import sign, write_keys
from serving.client import Client
from serving.readings import read

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


@contextmanager
def process(models, *options, code="", environment=ENVIRONMENT):
    """A server's process, or that of `code`, which is to run the command line; killed at the end."""
    how = ["-c", code] if code else ["-m", "serving"]
    command = [sys.executable, *how, "run", str(models), "--address", "127.0.0.1:0", "--log-format", "json"]
    started = subprocess.Popen(
        [*command, *options], stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    try:
        yield started
    finally:
        started.kill()
        started.communicate()


def port(started, name="port"):
    for line in started.stderr:
        entry = json.loads(line)
        if entry["event"] == "SERVING":
            return entry[name]
    pytest.fail("the server ended before it said SERVING")


def refusal(models, *options):
    command = [sys.executable, "-m", "serving", "run", str(models), "--address", "127.0.0.1:0", "--log-level", "error"]
    done = subprocess.run(
        [*command, *options], capture_output=True, text=True, env=ENVIRONMENT, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


def test_process_serves_and_drains(models):
    """start, classify over the socket, SIGTERM, exit 0."""
    with process(models) as started:
        with Client(f"127.0.0.1:{port(started)}") as client:
            answer = client.classify([tiny_bundle.picture("green")])
        assert answer.results[0].predictions[0].label == "green"
        started.send_signal(signal.SIGTERM)
        assert started.wait(timeout=20) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_while_it_starts_ends_it_at_once(models, number):
    """A model that never ends to load does not hold it up."""
    script = (
        "import sys, threading\n"
        "from serving import cli, process\n"
        "process.load_model = lambda *_, **__: threading.Event().wait()\n"
        "cli.main()\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = "{}:{}".format(*free.getsockname())
    options = ("--address", address, "--http-address", "off")
    with process(models, *options, code=script) as started, grpc.insecure_channel(address) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        status = check(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=60).status
        assert status == health_pb2.HealthCheckResponse.NOT_SERVING
        started.send_signal(number)
        assert started.wait(timeout=20) == 0


@pytest.mark.parametrize("option", ["--pins-file", "--tokens"])
def test_a_pipe_is_no_file_and_waited_for_by_nobody(models, tmp_path, option):
    """It would hold up every look, and the exit."""
    os.mkfifo(tmp_path / "pipe")
    assert "pipe: wanted a file of " in refusal(models, option, str(tmp_path / "pipe"))


def test_a_hangup_drains_a_server_unless_it_is_to_outlive_its_terminal(models):
    """As SIGTERM does; under nohup it goes on."""
    with process(models, "--http-address", "off") as started:
        port(started)
        started.send_signal(signal.SIGHUP)
        assert started.wait(timeout=20) == 0
    ignoring = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); from serving.cli import main; main()"
    with process(models, "--http-address", "off", code=ignoring) as started:
        with Client(f"127.0.0.1:{port(started)}") as client:
            started.send_signal(signal.SIGHUP)
            assert client.classify([tiny_bundle.picture("red")]).results[0].predictions
        started.send_signal(signal.SIGTERM)
        assert started.wait(timeout=20) == 0


def test_streams_that_were_closed_are_open_on_nothing(models):
    """Else the next file has the number of one, and the exit is an abort."""
    script = "import os; os.close(0); from serving.__main__ import main; main()"
    with process(models, "--http-address", "off", code=script) as started:
        port(started)
        assert str(Path(f"/proc/{started.pid}/fd/0").readlink()) == os.devnull
        started.send_signal(signal.SIGTERM)
        assert started.wait(timeout=20) == 0


def test_the_folder_of_another_programs_metrics_is_left_alone(models, tmp_path):
    """A variable of the environment is no reason to keep them in files, or to fail where there is no such folder."""
    variables = {**ENVIRONMENT, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "none")}
    with process(models, "--http-address", "127.0.0.1:0", environment=variables) as started:
        assert read(f"127.0.0.1:{port(started, 'http_port')}").total("calotype_serving") == 1
        started.send_signal(signal.SIGTERM)
        assert started.wait(timeout=20) == 0


def test_models_of_a_process_share_its_cores_and_its_memory_for_decoding(models):
    """One occupancy for all of them, that lets as many decode as the settings say."""
    tiny_bundle.write(models, name="shades")
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from serving import process\n"
        "from serving.settings import ServerSettings\n"
        "load, given = process.load_model, []\n"
        "def noting(*arguments, **options):\n"
        "    given.append(options['occupancy'])\n"
        "    return load(*arguments, **options)\n"
        "process.load_model = noting\n"
        "settings = ServerSettings(address='127.0.0.1:0', http_address='off', instances=1)\n"
        "stop = lambda: os.kill(os.getpid(), signal.SIGTERM)\n"
        "process.run(Path(sys.argv[1]), settings, on_serving=stop)\n"
        "decoding = given[0].decoding\n"
        "print(len(given), len(set(given)), decoding.acquire(blocking=False), decoding.acquire(blocking=False))\n"
    )
    command = [sys.executable, "-c", script, str(models)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=60, check=False)
    assert done.stdout.splitlines()[-1:] == ["2 1 True False"], done.stderr


def test_a_bad_model_does_not_stop_the_start_of_the_others(models):
    """As it does not end a server that runs; where requests without a name are meant for it, it does."""
    (models / "roses" / "1").mkdir(parents=True)
    with process(models) as started, Client(f"127.0.0.1:{port(started)}") as client:
        assert [model.name for model in client.models()] == ["colours", "roses"]
        assert client.classify([tiny_bundle.picture("green")], model="colours").model == "colours"
    assert "roses" in refusal(models, "--default-model", "roses")


def test_previous_version_serves_when_the_newest_is_refused(models):
    """And the refused one is remembered with its reason."""
    tiny_bundle.change_constant(tiny_bundle.write(models), "mean", 0.5)
    with process(models) as started, Client(f"127.0.0.1:{port(started)}") as client:
        assert client.classify([tiny_bundle.picture("red")]).version == "1"
        assert [(model.version, model.state) for model in client.models()] == [("1", "READY"), ("2", "FAILED")]
        assert "golden" in client.models()[1].reason


def test_changed_mean_is_refused(models):
    """The graph was altered and signed anew: only the golden pictures can tell."""
    tiny_bundle.change_constant(models / "colours" / "1", "mean", 0.9)
    assert "golden picture" in refusal(models)


def test_swapped_labels_are_refused(models):
    """bundle.json and the model file disagree."""
    tiny_bundle.change_contract(models / "colours" / "1", labels=("green", "blue", "red"))
    assert "disagree on labels" in refusal(models)


def test_other_resize_is_refused(models):
    """The same for the preprocessing."""
    spec = PreprocessSpec(resize_px=40, crop_px=tiny_bundle.CROP_PX)
    tiny_bundle.change_contract(models / "colours" / "1", preprocess=spec)
    assert "disagree on preprocess" in refusal(models)


def test_flipped_byte_is_refused(models):
    """The hash tells."""
    path = models / "colours" / "1" / "model.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert "sha256" in refusal(models)


def test_variant_that_is_not_there_is_refused(models):
    """One line that names those that are."""
    assert "no int8 variant, found fp32; choose" in refusal(models, "--variant", "int8")


def test_int8_that_fails_its_golden_pictures_is_refused_by_name(models):
    """Fail closed: what was asked for serves, or nothing."""
    tiny_bundle.add_variant(models / "colours" / "1", "int8", scale=0.5)
    assert "(int8): golden picture" in refusal(models, "--variant", "int8")


def test_empty_folder_is_refused(tmp_path):
    """One line that says what to do."""
    assert re.search(r"no models; write one with `trainer export RUN --name", refusal(tmp_path))
    tiny_bundle.write(tmp_path)
    for folder in (tmp_path / "colours", tmp_path / "colours" / "1"):
        assert f"no models, but versions of one; serve {tmp_path}" in refusal(folder)


def test_only_signed_bundles_serve_where_that_is_required(models, tmp_path):
    """Unsigned, of a stranger, changed: one line each; signed by a trusted key: SERVING."""
    folder, private, stranger = models / "colours" / "1", tmp_path / "key.pem", tmp_path / "stranger.pem"
    required = ("--require-signature", str(write_keys(private)))
    assert "not signed" in refusal(models, *required)
    write_keys(stranger)
    sign(folder, stranger)
    assert "signed by none of the 1 key" in refusal(models, *required)
    sign(folder, private)
    with process(models, *required) as started:
        assert port(started)
    tiny_bundle.change_contract(folder, temperature=2.0)
    assert "bundle.json was changed after" in refusal(models, *required)


def test_missing_key_file_stops_the_start(models, tmp_path):
    """A server that is to trust nobody serves nothing."""
    assert "keys.pub: No such file" in refusal(models, "--require-signature", str(tmp_path / "keys.pub"))


def test_a_second_signal_ends_a_single_process_at_once(models):
    """It would go on answering for another minute."""
    with process(models, "--http-address", "off", "--lame-duck-s", "60") as started:
        port(started)
        started.send_signal(signal.SIGTERM)
        while json.loads(started.stderr.readline())["event"] != "draining":
            pass
        started.send_signal(signal.SIGTERM)
        assert started.wait(30) == 128 + signal.SIGTERM


@pytest.mark.parametrize("options", [(), ("--workers", "2")])
def test_a_terminal_that_closes_may_hang_up_twice(models, options):
    """Its shell does, and the system: the server drains all the same, and is stopped."""
    with process(models, "--http-address", "off", "--lame-duck-s", "1", *options) as started:
        port(started)
        started.send_signal(signal.SIGHUP)
        while json.loads(started.stderr.readline())["event"] != "draining":
            pass
        started.send_signal(signal.SIGHUP)
        assert started.wait(30) == 0
        assert '"stopped"' in started.stderr.read()


def test_a_process_counts_the_versions_that_it_refuses(models):
    """Of which an alarm is made."""
    tiny_bundle.change_constant(tiny_bundle.write(models), "mean", 0.9)
    with process(models, "--http-address", "127.0.0.1:0") as started:
        reading = read(f"127.0.0.1:{port(started, 'http_port')}")
    assert reading.total("calotype_model_load_failures_total") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_command_that_is_still_being_imported(number):
    """Not by the system's default, which a container's first process does not get, nor with an import's frames."""
    code = (
        "import os, sys; from types import SimpleNamespace; from serving.__main__ import main; "
        f"kill = lambda name, *_: os.kill(os.getpid(), {number:d}) if name == 'serving.cli' else None; "
        "sys.meta_path.insert(0, SimpleNamespace(find_spec=kill)); main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (128 + number, "")


def test_why_it_cannot_serve_is_a_line_of_json_too(models):
    """Where the log is: else it would be lost to whoever collects that."""
    command = [sys.executable, "-m", "serving", "run", str(models), "--address", "127.0.0.1:0", "--log-format", "json"]
    done = subprocess.run(
        [*command, "--default-model", "roses"], capture_output=True, text=True, env=ENVIRONMENT, timeout=60, check=False
    )
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert (done.returncode, lines[-1]["event"]) == (1, "cannot serve")
    assert "no model 'roses', found colours" in lines[-1]["reason"]
