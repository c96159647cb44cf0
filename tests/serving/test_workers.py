"""Several processes behind one address: shared out, watched, counted together, stopped together."""

import json
import os
import queue
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import pytest
import tiny_bundle
from prometheus_client import ProcessCollector
from running import until
from test_client_and_cli import command
from test_process import ENVIRONMENT, process, refusal

from protos import classifier_pb2 as pb
from protos import classifier_pb2_grpc, open_inference_pb2_grpc
from protos import open_inference_pb2 as v2
from serving.addresses import Address
from serving.errors import StartupError
from serving.readings import read
from serving.shared_places import held_port, metrics_folder
from serving.worker_metrics import CrewCollector
from serving.workers import MAX_PAUSE_S, pause_s

PATIENCE_S = 60
CONNECTIONS = 12  # all on one of two workers: once in 2048 runs


class Crew:
    """A running supervisor and what its log says."""

    def __init__(self, started):
        self.process = started
        self._lines = queue.Queue()
        self.heard = []  # all lines
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        with suppress(ValueError):  # closed at the end of the test
            for line in self.process.stderr:
                self.heard.append(line)
                if line.startswith("{"):  # the last word, to a person, is no JSON
                    self._lines.put(json.loads(line))

    def next(self, event):
        """The next log line of this event."""
        while True:
            line = self._lines.get(timeout=PATIENCE_S)
            if line["event"] == event:
                return line


@contextmanager
def crew(models, *options):
    """Two workers, both serving; the numbers of their processes and of their ports."""
    with process(models, "--workers", "2", "--http-address", "127.0.0.1:0", "--drain-s", "5", *options) as started:
        running = Crew(started)
        try:
            pids = {running.next("worker started")["pid"] for _ in range(2)}
            serving = [running.next("SERVING") for _ in range(2)]
            assert {line["pid"] for line in serving} == pids
            assert len({(line["port"], line["http_port"]) for line in serving}) == 1
            yield running, pids, serving[0]["port"], serving[0]["http_port"]
        finally:
            started.send_signal(signal.SIGTERM)
            assert started.wait(PATIENCE_S) == 0


def connection(port):
    return grpc.insecure_channel(
        f"127.0.0.1:{port}", options=[("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
    )


def classify(channel, *, reconnect=False):
    """Ask once; with `reconnect`, not before the channel has found a process again."""
    request = pb.ClassifyRequest(images=[tiny_bundle.picture("red")])
    stub = classifier_pb2_grpc.ClassifierStub(channel)
    return stub.Classify(request, timeout=PATIENCE_S, wait_for_ready=reconnect)


def told(http_port, name):
    """The sum of a metric's samples, over a connection of its own."""
    return read(f"127.0.0.1:{http_port}").total(name)


def pictures_told(port):
    """The pictures of all versions that ModelStatistics tells of, over a connection of its own."""
    with connection(port) as channel:
        stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        answer = stub.ModelStatistics(v2.ModelStatisticsRequest(), timeout=PATIENCE_S)
    return sum(model.inference_count for model in answer.model_stats)


def resident_bytes(pid):
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def begun_s(pid):
    """When a process was started, as the library says of a single one."""
    families = ProcessCollector(pid=lambda: pid, registry=None).collect()
    (start,) = (family.samples[0].value for family in families if family.name == "process_start_time_seconds")
    return start


def test_ctrl_c_while_workers_start_is_the_supervisors_affair(models):
    """A terminal sends it to them too, in the midst of their imports: it is no traceback of theirs."""
    with process(models, "--workers", "2", "--http-address", "off") as started:
        told = map(json.loads, started.stderr)
        first, second = (next(told) for _ in range(2))
        assert [first["event"], second["event"]] == ["worker started"] * 2
        until(lambda: "numpy" in Path(f"/proc/{second['pid']}/maps").read_text(), what="an import of many")
        os.killpg(started.pid, signal.SIGINT)
        list(told)  # until all have closed it: nothing but JSON
        assert started.wait(PATIENCE_S) == 0


def test_connections_are_shared_out_and_counted_together(models):
    """Both workers answer, and either tells the sum of both, over six new connections: both are asked."""
    with crew(models) as (running, pids, port, http_port):
        channels = [connection(port) for _ in range(CONNECTIONS)]
        for channel in channels:
            assert classify(channel).results[0].predictions[0].label == "red"
        assert {told(http_port, "calotype_requests_total") for _ in range(6)} == {float(CONNECTIONS)}
        assert {pictures_told(port) for _ in range(6)} == {CONNECTIONS}
        everybody = [resident_bytes(pid) for pid in (running.process.pid, *pids)]
        assert told(http_port, "process_resident_memory_bytes") > 0.8 * sum(everybody) > 1.5 * max(everybody)
        assert {told(http_port, "process_start_time_seconds") for _ in range(6)} == {begun_s(running.process.pid)}
        assert "up 0 min" in str(command("top", "--address", f"127.0.0.1:{http_port}", "--once").stdout)
        for channel in channels:
            channel.close()


def test_the_cpu_time_of_a_worker_that_died_stays_counted():
    """A counter that fell would be taken for a restart of the server."""

    def cpu_s():
        families = {family.name: family for family in CrewCollector(os.getpid()).collect()}
        return families["process_cpu_seconds"].samples[0].value

    before, buried_s = cpu_s(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    subprocess.run([sys.executable, "-c", "sum(range(10_000_000))"], check=True)
    buried_s = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - buried_s
    assert cpu_s() - before > 0.8 * buried_s > 0.05


def test_a_killed_worker_costs_only_its_own_calls_and_comes_back(models):
    """kill -9: others' connections lose nothing, its own fail as UNAVAILABLE, and a new process takes its place."""
    with crew(models) as (running, pids, port, _):
        channels = [connection(port) for _ in range(CONNECTIONS)]
        for channel in channels:
            classify(channel)  # connected, or all might connect after the kill
        outcomes, answered, stopping = [[] for _ in channels], queue.Queue(), threading.Event()

        def call(channel, statuses):
            while not stopping.is_set():
                try:
                    classify(channel)
                    statuses.append("OK")
                except grpc.RpcError as error:
                    statuses.append(error.code().name)
                answered.put(channel)

        callers = [
            threading.Thread(target=call, args=pair, daemon=True) for pair in zip(channels, outcomes, strict=True)
        ]
        for caller in callers:
            caller.start()
        os.kill(min(pids), signal.SIGSTOP)  # first, so that it dies with calls in its hands
        with suppress(queue.Empty):  # what was answered before says nothing of what is in its hands now
            while True:
                answered.get_nowait()
        counts = Counter()
        while max(counts.values(), default=0) < 20:  # the others go on
            counts[answered.get(timeout=PATIENCE_S)] += 1
        os.kill(min(pids), signal.SIGKILL)
        assert running.next("worker died")["pid"] == min(pids)
        assert running.next("worker started")["pid"] not in pids
        running.next("SERVING")
        stopping.set()
        for caller in callers:
            caller.join(PATIENCE_S)
        assert {status for statuses in outcomes for status in statuses} <= {"OK", "UNAVAILABLE"}
        assert any("UNAVAILABLE" in statuses for statuses in outcomes)
        assert any("UNAVAILABLE" not in statuses for statuses in outcomes)
        for channel in channels:
            classify(channel, reconnect=True)  # everyone is answered again
            channel.close()


def test_what_waited_in_a_worker_that_died_is_told_no_more(models):
    """Its gauges go with it, its counts stay; who takes its place counts on in its files, or they would pile up."""
    with crew(models) as (running, pids, port, http_port):
        with connection(port) as channel:
            classify(channel)
        dead = min(pids)
        its = {path for path in mapped(dead) if path.suffix == ".db"}
        (folder,) = {path.parent for path in its}
        gauges = {path for path in its if path.name.startswith("gauge_live")}
        assert gauges < its
        assert "TMPDIR" in ENVIRONMENT or folder.parent == Path("/dev/shm")  # no disk that others fill
        before = set(folder.glob("*.db"))
        for _ in range(2):
            os.kill(dead, signal.SIGKILL)
            running.next("worker died")
            assert {path for path in its if path.exists()} == its - gauges
            dead = running.next("SERVING")["pid"]
            assert {path for path in mapped(dead) if path.suffix == ".db"} == its
            assert set(folder.glob("*.db")) == before
        assert told(http_port, "calotype_pictures_total") == 1


def mapped(pid):
    """The files that a process has mapped."""
    lines = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8").splitlines()
    return {Path(fields[5]) for fields in (line.split(maxsplit=5) for line in lines) if len(fields) == 6}


def test_a_worker_that_cannot_be_started_again_just_now_costs_nothing_else(models):
    """The system has no descriptor left for a moment: the others go on, and it is tried again."""
    with crew(models) as (running, pids, port, _):
        limits = resource.prlimit(running.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(running.process.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
        os.kill(min(pids), signal.SIGKILL)
        running.next("worker cannot be started")
        assert running.process.poll() is None
        resource.prlimit(running.process.pid, resource.RLIMIT_NOFILE, limits)
        running.next("SERVING")
        for _ in range(6):
            with connection(port) as channel:
                classify(channel)


def test_workers_that_cannot_serve_stop_the_start(models):
    """The reason is logged by the worker, and nobody tries for ever."""
    tiny_bundle.change_constant(models / "colours" / "1", "mean", 0.9)
    with process(models, "--workers", "2") as started:
        running = Crew(started)
        assert "golden picture" in running.next("worker cannot start")["reason"]
        assert started.wait(PATIENCE_S) == 1


def test_a_bad_model_and_a_second_name_do_not_keep_a_worker_from_coming_back(models):
    """What came while they served is no reason not to start; who named no model goes on being answered by the first."""
    with crew(models) as (running, pids, port, _):
        (models / "roses" / "1").mkdir(parents=True)  # what `cp -r` leaves for a moment
        tiny_bundle.write(models, name="shades")
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for _ in pids:
            running.next("SERVING")
        for _ in range(6):
            with connection(port) as channel:
                assert classify(channel, reconnect=True).model == "colours"


def test_workers_share_the_cores_and_end_with_their_supervisor(models):
    """Each has its own; kill -9 of who watches them leaves nobody behind."""
    with process(models, "--workers", "2", "--http-address", "off") as started:
        running = Crew(started)
        pids = [running.next("worker started")["pid"] for _ in range(2)]
        for _ in pids:
            running.next("SERVING")
        cores = [os.sched_getaffinity(pid) for pid in pids]
        if len(os.sched_getaffinity(0)) > 1:
            assert not set.intersection(*cores)
        assert set.union(*cores) == os.sched_getaffinity(0)
        watched = [os.pidfd_open(pid) for pid in pids]
        started.kill()
        for number in watched:
            assert select.select([number], [], [], PATIENCE_S)[0]
            os.close(number)


def test_a_signal_while_workers_are_started_starts_no_more(models):
    """A number that is much too large is taken back at once."""
    with process(models, "--workers", "200", "--http-address", "off") as started:
        running = Crew(started)
        running.next("worker started")
        started.send_signal(signal.SIGTERM)
        assert started.wait(PATIENCE_S) == 0
    assert sum("worker started" in line for line in running.heard) < 150  # some five, on an idle machine


def test_a_second_signal_ends_workers_at_once(models):
    """They would go on answering for another minute."""
    with process(models, "--workers", "2", "--http-address", "off", "--lame-duck-s", "60") as started:
        running = Crew(started)
        for _ in range(2):
            running.next("SERVING")
        started.send_signal(signal.SIGTERM)
        for _ in range(2):
            running.next("draining")
        started.send_signal(signal.SIGTERM)
        assert started.wait(PATIENCE_S / 2) == 0


def test_a_port_is_shared_with_no_other_server(models):
    """Else a forgotten one would answer a part of the calls."""
    with crew(models) as (_, _, port, _):
        assert "cannot listen there" in refusal(models, "--workers", "2", "--address", f"127.0.0.1:{port}")


def test_a_worker_whose_supervisor_is_gone_ends(models):
    """Also where it was killed before the worker could ask to hear of that: it serves nobody."""
    code = (
        "import multiprocessing, pathlib, sys\n"
        "from serving import settings, worker\n"
        "own = settings.ServerSettings(address='127.0.0.1:0', http_address='off')\n"
        "context = multiprocessing.get_context('spawn')\n"
        "worker.work(pathlib.Path(sys.argv[1]), own, place=0, cores=[0], beat=context.RawValue('d'),\n"
        "            folder=pathlib.Path('.'), accord=None, supervisor=2**22 + 1)\n"
    )
    command = [sys.executable, "-c", code, str(models)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=PATIENCE_S, check=False)
    assert (done.returncode, done.stderr) == (1, "")


def test_pauses_grow_to_a_limit():
    """The first time at once."""
    assert [pause_s(failures) for failures in (0, 1, 2, 3)] == [0.0, 0.0, 1.0, 2.0]
    assert pause_s(1000) == MAX_PAUSE_S


def test_a_socket_file_cannot_be_shared(models, tmp_path):
    """One line that says what to do."""
    assert "--workers 1" in refusal(models, "--workers", "2", "--address", f"unix:{tmp_path}/socket")


def test_a_worker_drains_though_the_system_tells_it_too(models):
    """A service manager signals the whole group, and the supervisor each worker: no second wish to end at once."""
    with crew(models, "--lame-duck-s", "0.5") as (running, pids, _, _):
        told = min(pids)
        os.kill(told, signal.SIGTERM)
        running.next("draining")
        os.kill(told, signal.SIGTERM)
        running.next("stopped")
        assert running.next("worker died")["exit_code"] == 0


def test_a_worker_that_found_no_room_for_its_metrics_says_so(models):
    """The system ends it where a mapped file cannot grow."""
    with crew(models) as (running, pids, _, _):
        os.kill(min(pids), signal.SIGBUS)
        assert "TMPDIR" in running.next("worker died")["reason"]


def test_a_worker_that_cannot_be_started_at_first_ends_the_others(models):
    """Nobody would watch them."""
    code = (
        "import sys\n"
        "from multiprocessing.context import SpawnProcess\n"
        "from serving import cli\n"
        "start, started = SpawnProcess.start, []\n"
        "def start_one(process):\n"
        "    if started:\n"
        "        raise BlockingIOError(11, 'Resource temporarily unavailable')\n"
        "    started.append(start(process))\n"
        "SpawnProcess.start = start_one\n"
        "cli.main()\n"
    )
    words = ["run", str(models), "--workers", "2", "--address", "127.0.0.1:0", "--http-address", "off"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, env=ENVIRONMENT, timeout=60, check=False
    )
    last = "worker 1 cannot be started: Resource temporarily unavailable; choose fewer --workers, or one"
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, last)


def test_one_signal_drains_all_workers_each_in_a_session_of_its_own(models):
    """Ctrl-C in a terminal would reach workers twice, and the first signal is no second one."""
    with process(models, "--workers", "2", "--http-address", "off", "--lame-duck-s", "0.5") as started:
        running = Crew(started)
        pids = [running.next("worker started")["pid"] for _ in range(2)]
        for _ in pids:
            running.next("SERVING")
        assert [os.getsid(pid) for pid in pids] == pids
        started.send_signal(signal.SIGTERM)
        for _ in pids:
            running.next("stopped")
        assert started.wait(PATIENCE_S) == 0


def test_a_worker_that_dies_young_again_and_again_is_waited_for_longer(models):
    """Started anew at once each time it would do little else."""
    with crew(models) as (running, pids, _, _):
        os.kill(min(pids), signal.SIGKILL)
        assert running.next("worker died")["again_in_s"] == 0
        again = running.next("worker started")["pid"]
        running.next("SERVING")
        os.kill(again, signal.SIGKILL)
        assert running.next("worker died")["again_in_s"] > 0


def test_what_waits_in_several_workers_is_told_as_a_sum(tmp_path):
    """The most that waits in one of them says little."""
    code = (
        "import sys\n"
        "from prometheus_client import generate_latest\n"
        "from serving.metrics import Metrics\n"
        "metrics = Metrics()\n"
        "metrics.queue_pictures.labels('colours', '1').set(float(sys.argv[1]))\n"
        "print(generate_latest(metrics.exposed).decode())\n"
    )
    environment = {**ENVIRONMENT, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    for waiting in ("3", "4"):
        words = [sys.executable, "-c", code, waiting]
        told = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=60, check=True).stdout
    assert 'calotype_queue_pictures{model="colours",version="1"} 7.0' in told


def test_workers_have_all_of_their_time_to_end(models):
    """The lame-duck time and the drain, and only then they are killed."""
    code = "from serving import cli, workers; workers._KILL_AFTER_S = 0.2; cli.main()"
    options = ("--workers", "2", "--http-address", "off", "--lame-duck-s", "1.5")
    with process(models, *options, code=code) as started:
        running = Crew(started)
        for _ in range(2):
            running.next("SERVING")
        started.send_signal(signal.SIGTERM)
        for _ in range(2):
            running.next("stopped")
        assert started.wait(PATIENCE_S) == 0


def test_a_worker_that_does_not_run_any_more_is_killed_and_comes_back(models):
    """It holds connections that others would answer."""
    code = "from serving import cli, workers; workers._LOOK_S = 0.5; cli.main()"
    with process(models, "--workers", "2", "--http-address", "off", code=code) as started:
        running = Crew(started)
        pids = [running.next("worker started")["pid"] for _ in range(2)]
        for _ in pids:
            running.next("SERVING")
        os.kill(pids[0], signal.SIGSTOP)
        try:
            assert running.next("worker does not answer, and is killed")["pid"] == pids[0]
        except queue.Empty:  # it would hold the log open for ever
            os.kill(pids[0], signal.SIGKILL)
            raise
        assert running.next("worker died")["exit_code"] == -signal.SIGKILL
        assert running.next("SERVING")["pid"] not in pids
        started.send_signal(signal.SIGTERM)
        assert started.wait(PATIENCE_S) == 0


def test_a_worker_that_comes_back_lives_with_what_the_others_live_with(models, tmp_path):
    """Neither a pin that holds no more nor a file that cannot be read stops a restart, while another knows the pins."""
    pins = tmp_path / "pins"
    pins.write_text("colours=1")
    with crew(models, "--pins-file", str(pins), "--watch-s", "0.05") as (running, pids, port, _):
        pins.write_text("colours=99")
        os.kill(pids.pop(), signal.SIGKILL)
        running.next("worker died")
        begun = running.next("worker started")["pid"]
        assert running.next("SERVING")["pid"] == begun
        assert "pinned to version 99" in "".join(running.heard)
        pins.write_text("what?")
        os.kill(begun, signal.SIGKILL)
        running.next("SERVING")
        assert "pins stay as they are: " in "".join(running.heard)
        assert answers(port) == {("colours", "1")}


def test_a_port_is_held_while_nobody_listens_there_yet():
    """Else two servers that load at the same time would share the calls."""
    with held_port(Address.parse("127.0.0.1:0")) as address:
        with pytest.raises(StartupError, match="taken by another server"), held_port(Address.parse(address)):
            pass
        with socket.socket() as worker:
            worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            worker.bind(Address.parse(address).places()[0][1])


def answers(port):
    """What calls without a name get, each over a connection of its own: model and version, or a status."""
    found = set()
    for _ in range(CONNECTIONS):
        with connection(port) as channel:
            try:
                answer = classify(channel, reconnect=True)
                found.add((answer.model, answer.version))
            except grpc.RpcError as error:
                found.add(error.code())
    return found


def test_a_worker_comes_back_only_where_it_can_answer_as_the_others_do(models):
    """Neither by a version that was rolled back, nor by another model."""
    tiny_bundle.write(models)
    with crew(models, "--pin", "colours=1", "--watch-s", "0.1") as (running, pids, port, _):
        file = models / "colours" / "1" / "model.onnx"
        kept = file.rename(models.parent / "kept")
        os.kill(pids.pop(), signal.SIGKILL)
        assert "model.onnx" in running.next("worker cannot start")["reason"]
        assert answers(port) == {("colours", "1")}
        kept.rename(file)
        running.next("SERVING")
        assert answers(port) == {("colours", "1")}


def test_where_nobody_looks_at_the_folder_a_worker_comes_back_to_what_was_there(models):
    """Else two versions would answer, for good."""
    with crew(models, "--watch-s", "0") as (running, pids, port, _):
        tiny_bundle.write(models)
        os.kill(pids.pop(), signal.SIGKILL)
        running.next("SERVING")
        while (line := running.next("model ready"))["version"] != 2:
            pass
        assert line["worker"].startswith("worker-")  # though another thread told it
        assert answers(port) == {("colours", "1")}


def test_who_names_no_model_is_answered_by_the_usual_one_or_not_at_all(models):
    """Whatever can answer when workers come back: a second model has come, and the first is bad by now."""
    with crew(models, "--watch-s", "0.1") as (running, pids, port, _):
        tiny_bundle.write(models, name="shades")
        for _ in pids:
            while running.next("answering version")["model"] != "shades":
                pass
        (models / "colours" / "1" / "model.onnx").write_bytes(b"damaged")
        os.kill(pids.pop(), signal.SIGKILL)
        running.next("worker cannot start")
        assert answers(port) == {("colours", "1")}
        os.kill(pids.pop(), signal.SIGKILL)
        running.next("SERVING")
        assert answers(port) == {grpc.StatusCode.UNAVAILABLE}


def test_a_port_that_is_closing_is_no_obstacle_for_several(models):
    """Connections that a single process closed stay for a minute."""
    with socket.create_server(("127.0.0.1", 0)) as single:
        number = single.getsockname()[1]
        with socket.create_connection(("127.0.0.1", number)) as client:
            served, _ = single.accept()
            served.close()  # first: then it waits at the server's side
            assert client.recv(1) == b""
    with held_port(Address.parse(f"127.0.0.1:{number}")) as address:
        assert address == f"127.0.0.1:{number}"


def test_what_a_killed_supervisor_left_behind_is_removed_and_nothing_else(tmp_path, monkeypatch):
    """Memory would be lost until the next boot; another server's folder is in use."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "calotype-metrics-left").mkdir()
    (tmp_path / "calotype-metrics-left" / "lock").touch()
    (tmp_path / "other").mkdir()
    with metrics_folder() as first, metrics_folder() as second:
        assert {path.name for path in tmp_path.iterdir()} == {"other", Path(first).name, Path(second).name}
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
