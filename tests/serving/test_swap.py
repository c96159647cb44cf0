"""Versions that come, go, fail and are chosen while a server answers: no call may fail for it."""

import asyncio
import errno
import gc
import os
import shutil
import threading
from pathlib import Path

import grpc
import pytest
import tiny_bundle
from grpc_health.v1 import health_pb2, health_pb2_grpc
from running import LIMIT_S, Running, classify, load, plain_channel, until, with_runs

from bundle.errors import BundleError
from bundle.repository import versions
from bundle.signature import sign, write_keys
from serving.catalogue import Catalogue
from serving.client import Client
from serving.dispatcher import Dispatcher
from serving.errors import SettingsError, StartupError, UnknownModelError
from serving.loading import load_model
from serving.metrics import Metrics
from serving.reasons import plain_line
from serving.server import Server
from serving.settings import ServerSettings
from serving.shelves import fingerprint
from serving.unnamed import Unnamed
from serving.versions import VersionPolicy
from serving.watcher import Watcher


def hide(folder):
    """Take a version away as an operator would."""
    return folder.rename(folder.with_name(f".{folder.name}"))


@pytest.mark.skipif(not hasattr(os, "SCHED_OTHER"), reason="threads have no priority of their own")
def test_loading_takes_the_cores_from_nobody_who_answers(models):
    """What loads a new version gives way to the thread that talks, as the threads that run it do; no more than they."""
    own, seen = os.getpriority(os.PRIO_PROCESS, os.getpid()), {}

    def loading(folder):
        seen[folder.name] = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        served = load_model(folder, server.settings, metrics=server.metrics)
        (running,) = served._batcher._threads
        seen[f"{folder.name} runs"] = os.getpriority(os.PRIO_PROCESS, running.native_id)
        return served

    server = Running(models, load=loading)
    with server:
        tiny_bundle.write(models)
        until(lambda: server.answering() == 2, what="version 2")
    assert seen["2"] == seen["2 runs"] == min(19, own + 10)


def test_a_version_that_mixes_a_batch_never_serves(models):
    """One picture at a time it answers as at export; the server runs several together."""
    with Running(models) as server:
        tiny_bundle.write(models, is_mixed=True)
        until(lambda: server.states().get(2) == "FAILED", what="refusal")
        assert "together): golden picture" in server.catalogue.entry("colours", "2").reason
        assert server.answering() == 1


def test_health_is_not_serving_while_nothing_can_answer(models):
    """As a server does not start so; it is again when a version comes back."""
    with Running(models) as server, plain_channel(server.address) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check

        def status():
            return check(health_pb2.HealthCheckRequest(), timeout=LIMIT_S).status

        assert (status(), server.is_ready()) == (health_pb2.HealthCheckResponse.SERVING, True)
        tiny_bundle.change_constant(tiny_bundle.write(models), "mean", 0.5)
        hidden = hide(models / "colours" / "1")
        until(lambda: status() == health_pb2.HealthCheckResponse.NOT_SERVING, what="an honest answer")
        assert not server.is_ready()
        hidden.rename(models / "colours" / "1")
        until(lambda: status() == health_pb2.HealthCheckResponse.SERVING, what="the way back")
        assert server.is_ready()


def test_a_model_whose_last_version_leaves_during_the_start_costs_itself(models, monkeypatch):
    """Between the list of models and the look at its versions."""
    tiny_bundle.write(models, name="shades")
    monkeypatch.setattr("serving.upkeep.versions", lambda _, name: [] if name == "shades" else [1])
    with Running(models) as server:
        assert server.answering() == 1
    monkeypatch.setattr("serving.upkeep.versions", lambda *_: [])
    with pytest.raises(StartupError, match=r"colours: no versions"), Running(models):
        pass


def test_a_version_that_may_be_read_by_now_is_tried_again(models):
    """chmod changes neither a file's size nor its time."""
    refused, load = [], models / "colours" / "2"

    def loading(folder):
        if folder == load and (folder / "bundle.json").stat().st_mode & 0o777 == 0o600:
            refused.append(folder)
            raise BundleError("Permission denied")
        return load_model(folder, server.settings, metrics=server.metrics)

    server = Running(models, load=loading)
    with server:
        new = [tiny_bundle.write(models.with_name("elsewhere")) for _ in range(2)][-1]
        (new / "bundle.json").chmod(0o600)
        new.rename(load)
        until(lambda: refused and server.states().get(2) == "FAILED", what="refusal")
        (load / "bundle.json").chmod(0o644)
        until(lambda: server.answering() == 2, what="another try")


@pytest.mark.parametrize("drain_s", [30.0, 0.0])
def test_swaps_and_rollback_lose_no_call(models, drain_s):
    """Eight new versions and two rollbacks under load, with a plain stub that never retries; --drain-s is for exits."""
    with (
        Running(models, drain_s=drain_s) as server,
        plain_channel(server.address, **{"grpc.enable_retries": 0}) as channel,
    ):
        with load(lambda: classify(channel)) as calls:
            for number in range(2, 10):
                tiny_bundle.write(models)
                until(lambda number=number: str(number) in calls.seen, what=f"version {number}")
            for number in (9, 8):
                hide(models / "colours" / str(number))
                until(lambda number=number: server.answering() == number - 1, what="rollback")
            calls.more()
        assert calls.versions[-1] == "7"
        until(lambda: server.states() == {6: "READY", 7: "READY"}, what="keeping two")


def test_requests_under_way_finish_on_the_version_they_began_on(models):
    """A swap does not wait for them, and does not fail them."""
    may_run = threading.Event()

    def held(folder):
        served = load_model(folder, ServerSettings(instances=1, max_batch=1), metrics=server.metrics)
        if folder.name == "1":
            with_runs(served, lambda rows, run: (may_run.wait(60), run(rows))[1])
        return served

    server = Running(models, load=held, keep=1)
    with server, plain_channel(server.address) as channel, load(lambda: classify(channel), callers=2) as calls:
        held_model = server.catalogue.find()
        until(lambda: held_model.queued_items >= 1, what="a call that waits behind another")
        tiny_bundle.write(models)
        until(lambda: server.answering() == 2, what="the swap")
        assert classify(channel) == "2"
        assert calls.versions == []
        calls.stopping.set()
        may_run.set()
    assert calls.versions == ["1", "1"]


def test_a_named_version_is_reached_while_it_is_kept(models):
    """The newest two stay loaded; an older one is no longer known."""
    tiny_bundle.write(models)
    with Running(models) as server, plain_channel(server.address) as channel:
        until(lambda: server.states() == {1: "READY", 2: "READY"}, what="the kept version")
        assert [classify(channel, version=number) for number in ("", "1", "2")] == ["2", "1", "2"]
        tiny_bundle.write(models)
        until(lambda: server.states() == {2: "READY", 3: "READY"}, what="the oldest one leaving")
        with pytest.raises(grpc.RpcError) as caught:
            classify(channel, version="1")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_folder_that_does_not_answer_does_not_hold_up_the_exit(models):
    """A mount whose server is gone: the look at it hangs, calls go on, and the drain has an end."""
    may_load = threading.Event()

    def load_slowly(folder):
        if folder.name == "2":
            may_load.wait(LIMIT_S)
        return load_model(folder, server.settings, metrics=server.metrics)

    server = Running(models, load=load_slowly, drain_s=0.2)
    with server, plain_channel(server.address) as channel:
        tiny_bundle.write(models)
        until(lambda: server.states().get(2) == "LOADING", what="the look")
        assert classify(channel) == "1"
        assert not server.call(server._server.shutdown())
        may_load.set()


def lock(monkeypatch, folder):
    """Let nobody look into a folder; who runs these tests may be allowed to read everything."""
    look = Path.iterdir

    def look_or_refuse(path):
        if path == folder:
            raise PermissionError(13, "Permission denied", str(folder))
        return look(path)

    monkeypatch.setattr(Path, "iterdir", look_or_refuse)


def test_a_model_folder_that_may_not_be_read_costs_the_others_nothing(models, monkeypatch, capfd):
    """Neither at the start nor later, where that model stays as it was; both times it is said."""
    tiny_bundle.write(models, name="shades")
    with monkeypatch.context() as locked:
        lock(locked, models / "shades")
        with Running(models, watch_s=0) as server, plain_channel(server.address) as channel:
            assert classify(channel, model="colours") == "1"
            assert server.states("shades") == {}
    assert "shades: Permission denied; let the user that runs this read it" in "".join(capfd.readouterr())
    with Running(models, watch_s=0) as server, plain_channel(server.address) as channel:
        lock(monkeypatch, models / "shades")
        tiny_bundle.write(models)
        server.catalogue.refresh()
        assert server.states() == {1: "READY", 2: "READY"}
        assert classify(channel, "red", model="shades") == "1"
    assert "shades: Permission denied" in "".join(capfd.readouterr())


def test_links_to_where_nobody_may_look_cost_nothing_else(models, monkeypatch):
    """Neither a model's, nor a version's; and who named no model stays with the one that answered."""
    is_folder = Path.is_dir

    def look_or_refuse(path):
        if path in (models / "shades", models / "colours" / "7"):
            raise PermissionError(13, "Permission denied", str(path))
        return is_folder(path)

    (models / "colours" / "7").symlink_to(models / "away")
    tiny_bundle.write(models, name="shades")
    with monkeypatch.context() as locked:
        locked.setattr(Path, "is_dir", look_or_refuse)
        with Running(models, watch_s=0) as server, plain_channel(server.address) as channel:
            assert classify(channel) == "1"
            assert server.states() == {1: "READY", 7: "FAILED"}
            locked.undo()
            server.catalogue.refresh()
            assert server.states("shades") == {1: "READY"}
            assert server.catalogue.find().contract.name == "colours"


def test_a_version_of_other_files_of_the_same_size_and_time_is_loaded_anew(models):
    """As reproducible images have them: all of one time."""
    with Running(models, watch_s=0) as server:
        before, folder = server.catalogue.find().digest, models / "colours" / "1"
        other = tiny_bundle.write(models.with_name("others"), scale=1.25)
        sizes = [path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()]
        assert sizes == [path.stat().st_size for path in sorted(other.rglob("*")) if path.is_file()]
        for path in (*folder.rglob("*"), *other.rglob("*")):
            os.utime(path, (1, 1))
        server.catalogue.refresh()
        folder.rename(folder.with_name(".old"))
        other.rename(folder)
        server.catalogue.refresh()
        assert server.catalogue.find().digest != before


def test_the_only_model_that_may_not_be_read_is_one_line(models, monkeypatch):
    """At the start; also one that was asked for, beside others."""
    lock(monkeypatch, models / "colours")
    with pytest.raises(StartupError, match=r"colours: Permission denied; let the user"):
        Catalogue(models, lambda _: None).load_all()
    tiny_bundle.write(models, name="shades")
    with pytest.raises(StartupError, match=r"colours: Permission denied; let the user"):
        Catalogue(models, lambda _: None, default_model="colours").load_all()


def test_the_only_model_answers_also_when_it_is_another(models):
    """Whoever names none gets the one that did so far, and the one that is left when that has gone."""
    with Running(models, watch_s=0) as server:
        tiny_bundle.write(models, name="shades")
        server.catalogue.refresh()
        assert server.catalogue.find().contract.name == "colours"
        hide(models / "colours")
        server.catalogue.refresh()
        assert server.catalogue.find().contract.name == "shades"


def test_a_reason_names_no_file_of_the_server(models):
    """Callers read it in the list of models."""

    def refuse(folder):
        if folder.name == "2":
            raise BundleError(f'{folder}: no key in /etc/secret/operator.pub, "/tmp/other one" or a/b fits; ask')
        return load_model(folder, server.settings, metrics=server.metrics)

    server = Running(models, load=refuse, watch_s=0)
    with server:
        tiny_bundle.write(models)
        server.catalogue.refresh()
        (_, bad) = server.catalogue.entries()
        assert bad.reason == 'colours/2: no key in …, "… one" or a/b fits; ask'


def test_bad_version_is_reported_and_never_serves(models):
    """State, reason, metric and health; tried once, and again only when its folder has changed."""
    good = tiny_bundle.write(models)
    kept = good.rename(models / "kept")
    with Running(models) as server, plain_channel(server.address) as channel, load(lambda: classify(channel)) as calls:
        failures = lambda: server.metrics.registry.get_sample_value(  # noqa: E731
            "calotype_model_load_failures_total", {"model": "colours"}
        )
        assert failures() == 0  # not None: what begins with 1 is no rise to Prometheus
        staging = shutil.copytree(kept, models / "colours" / ".staging")
        tiny_bundle.change_constant(staging, "mean", 0.5)
        bad = staging.rename(models / "colours" / "2")
        until(lambda: server.states() == {1: "READY", 2: "FAILED"}, what="the refusal")
        with Client(server.address) as client:
            assert "golden" in client.models()[1].reason
        for _ in range(3):
            server.catalogue.refresh()
        assert failures() == 1
        assert health(channel, "colours") == "SERVING"
        until(lambda: health(channel, "colours/2") == "NOT_SERVING", what="health of the bad version")
        assert until(lambda: calls.seen, what="an answer") == {"1"}
        shutil.rmtree(bad)
        kept.rename(bad)
        until(lambda: "2" in calls.seen, what="the mended version")


def test_version_that_is_copied_bit_by_bit_serves_once_it_is_whole(models):
    """`cp -r` shows half a folder first."""
    whole = tiny_bundle.write(models).rename(models / "whole")
    with Running(models, watch_s=0) as server:
        target = models / "colours" / "2"
        target.mkdir()
        for name in ("bundle.json", "model.onnx"):
            shutil.copy(whole / name, target)
            server.catalogue.refresh()
            assert server.states()[2] == "FAILED"
        shutil.copytree(whole / "golden", target / "golden")
        server.catalogue.refresh()
        assert (server.states()[2], server.answering()) == ("READY", 2)


@pytest.mark.parametrize(
    "lacked",
    [
        pytest.param(OSError(errno.EMFILE, "Too many open files"), id="descriptors"),
        pytest.param(MemoryError("std::bad_alloc"), id="memory"),
        pytest.param(RuntimeError("[ONNXRuntimeError] : 6 : std::bad_alloc"), id="memory of onnxruntime"),
        pytest.param(RuntimeError("can't start new thread"), id="threads"),
        pytest.param(ValueError("Invalid graph"), id="nothing"),
    ],
)
@pytest.mark.parametrize("is_wrapped", [False, True])
def test_what_the_machine_lacked_for_a_while_refuses_no_version_for_ever(models, monkeypatch, lacked, is_wrapped):
    """Its folder does not change when memory or descriptors come back; a bad one is tried once."""
    tries = []

    def loading(folder):
        if folder.name == "2":
            tries.append(folder)
            if len(tries) < 3 and not is_wrapped:
                raise lacked
            if len(tries) < 3:
                raise BundleError("model.onnx: cannot be opened") from lacked
        return load_model(folder, server.settings, metrics=server.metrics)

    monkeypatch.setattr("serving.reasons.TRY_AGAIN_S", 0.0)
    server = Running(models, load=loading, watch_s=0)
    with server:
        until(server._server._watcher._task.done, what="the only look")
        tiny_bundle.write(models)
        for _ in range(4):
            server.catalogue.refresh()
        passes = not isinstance(lacked, ValueError)
        assert (len(tries), server.answering()) == ((3, 2) if passes else (1, 1))


def test_a_version_is_not_tried_at_every_look_while_the_machine_lacks_something(models):
    """Each try takes memory, and a core."""
    tries = []

    def loading(folder):
        if folder.name == "2":
            tries.append(folder)
            raise MemoryError
        return load_model(folder, server.settings, metrics=server.metrics)

    server = Running(models, load=loading, watch_s=0)
    with server:
        until(server._server._watcher._task.done, what="the only look")
        tiny_bundle.write(models)
        for _ in range(4):
            server.catalogue.refresh()
        assert len(tries) == 1


def test_a_version_that_is_copied_slowly_is_tried_once(models):
    """Each look finds more of it: nothing is refused, and what serves is left alone until all has come."""
    whole = tiny_bundle.write(models).rename(models / "whole")
    with Running(models, watch_s=0) as server:
        until(server._server._watcher._task.done, what="the only look")
        target = models / "colours" / "2"
        target.mkdir()
        for name in ("bundle.json", "model.onnx", "golden/red.png"):
            (target / name).parent.mkdir(exist_ok=True)
            shutil.copy(whole / name, target / name)
            server.catalogue.refresh(waits_for_whole=True)
            assert server.states() == {1: "READY"}
        shutil.copytree(whole / "golden", target / "golden", dirs_exist_ok=True)
        server.catalogue.refresh(waits_for_whole=True)
        server.catalogue.refresh(waits_for_whole=True)
        assert (server.states()[2], server.answering()) == ("READY", 2)
        assert server.metrics.load_failures.labels("colours")._value.get() == 0


@pytest.mark.parametrize("how", ["pin", "hide"])
def test_a_rollback_does_not_wait_for_a_load_that_takes_for_ever(models, tmp_path, how):
    """Version 3 hangs while it is proved; health and calls follow the operator meanwhile."""
    pins, may_load = tmp_path / "pins", threading.Event()
    pins.write_text("")
    tiny_bundle.write(models)

    def load_slowly(folder):
        if folder.name == "3":
            may_load.wait(LIMIT_S)
        return load_model(folder, server.settings, metrics=server.metrics)

    server = Running(models, load=load_slowly, pins_file=pins)
    with server, plain_channel(server.address) as channel:
        until(lambda: server.states() == {1: "READY", 2: "READY"}, what="both")
        tiny_bundle.write(models)
        until(lambda: server.states().get(3) == "LOADING", what="the look")
        if how == "pin":
            pins.write_text("colours=1\n")
        else:
            hide(models / "colours" / "2")
        until(lambda: classify(channel) == "1", what="the rollback")
        check = health_pb2_grpc.HealthStub(channel).Check
        loading = check(health_pb2.HealthCheckRequest(service="colours/3"), timeout=LIMIT_S)
        assert loading.status == health_pb2.HealthCheckResponse.NOT_SERVING
        may_load.set()


def test_a_pin_is_followed_while_the_folder_does_not_answer(models, tmp_path, monkeypatch):
    """A mount whose server is gone: both versions are in memory, and the pins lie elsewhere."""
    pins, asked, may_look = tmp_path / "pins", threading.Event(), threading.Event()
    pins.write_text("")
    tiny_bundle.write(models)

    def look_for_ever(place, name):
        asked.set()
        may_look.wait(LIMIT_S)
        return versions(place, name)

    with Running(models, pins_file=pins) as server:
        until(lambda: server.states() == {1: "READY", 2: "READY"}, what="both")
        monkeypatch.setattr("serving.upkeep.versions", look_for_ever)
        assert asked.wait(LIMIT_S)
        for pin in (1, 2, 1):
            pins.write_text(f"colours={pin}\n")
            until(lambda pin=pin: server.answering() == pin, what="the pinned version")
        may_look.set()


@pytest.mark.parametrize("lost", ["", "colours"])
@pytest.mark.parametrize("is_empty", [False, True])
def test_a_rollback_needs_no_folder_that_can_be_read(models, tmp_path, lost, is_empty):
    """Neither that of all models nor that of one: both versions are loaded."""
    pins = tmp_path / "pins"
    pins.write_text("")
    tiny_bundle.write(models)
    with Running(models, pins_file=pins) as server:
        until(lambda: server.states() == {1: "READY", 2: "READY"}, what="both")
        (models / lost).rename(tmp_path / "elsewhere")
        if is_empty:
            (models / lost).mkdir()
        for pin in (1, 2, 1):
            pins.write_text(f"colours={pin}\n")
            until(lambda pin=pin: server.answering() == pin, what="the pinned version")


def test_what_one_model_let_go_of_is_closed_before_the_next_one_is_loaded(models):
    """Where all are replaced at once, all the new ones beside all the old may not fit."""
    tiny_bundle.write(models, name="shades")
    opened, closed = [], []

    def loading(folder):
        name = f"{folder.parent.name}/{folder.name}"
        opened.append((name, closed.copy()))
        served = load_model(folder, server.settings, metrics=server.metrics)
        close = served.close
        served.close = lambda timeout_s: (closed.append(name), close(timeout_s))[1]
        return served

    server = Running(models, load=loading, watch_s=0, keep=1)
    with server:
        until(server._server._watcher._task.done, what="the only look")
        tiny_bundle.write(models)
        tiny_bundle.write(models, name="shades")
        server.catalogue.refresh()
        assert opened[2:] == [("colours/2", []), ("shades/2", ["colours/1"])]
        server.catalogue.release(LIMIT_S)
        assert closed == ["colours/1", "shades/1"]


def test_a_version_that_leaves_while_its_changed_folder_is_refused_does_not_come_back(models):
    """It was let go of meanwhile, and is closed: nobody may be sent to it."""
    tiny_bundle.write(models)
    is_loading, may_fail = threading.Event(), threading.Event()

    def loading(folder):
        if is_changed:
            is_loading.set()
            assert may_fail.wait(LIMIT_S)
            raise BundleError("bad")
        return load_model(folder, server.settings, metrics=server.metrics)

    is_changed, server = [], Running(models, load=loading, watch_s=0)
    with server, plain_channel(server.address) as channel:
        until(server._server._watcher._task.done, what="the only look")
        is_changed.append((models / "colours" / "2" / "bundle.json").touch())
        looking = threading.Thread(target=server.catalogue.refresh)
        looking.start()
        assert is_loading.wait(LIMIT_S)
        hide(models / "colours" / "2")
        server.catalogue.let_go()
        may_fail.set()
        looking.join()
        server.catalogue.release(LIMIT_S)
        assert server.states() == {1: "READY"}
        assert classify(channel) == "1"


def test_changed_folder_replaces_a_serving_version_only_by_a_good_one(models):
    """What proved itself goes on serving while its folder holds something bad."""
    with Running(models, watch_s=0) as server:
        before = server.catalogue.find()
        tiny_bundle.change_constant(models / "colours" / "1", "mean", 0.5)
        server.catalogue.refresh()
        (entry,) = server.catalogue.entries()
        assert (server.catalogue.find(), entry.state) == (before, "READY")
        assert "golden" in entry.reason
        tiny_bundle.change_constant(models / "colours" / "1", "mean", 2.0)
        tiny_bundle.change_constant(models / "colours" / "1", "bank", 0.5)
        server.catalogue.refresh()
        assert "of logits 0, tolerance 0.0001; of similarity 0.4" in server.catalogue.entries()[0].reason
        tiny_bundle.change_constant(models / "colours" / "1", "bank", 2.0)
        server.catalogue.refresh()
        server.catalogue.release(LIMIT_S)
        assert server.catalogue.find() is not before
        value = server.metrics.registry.get_sample_value
        assert value("calotype_queue_pictures", {"model": "colours", "version": "1"}) == 0  # the new one's, still there


def test_pin_in_a_file_rolls_back_without_a_restart(models, tmp_path):
    """The folder of models stays as it is; a pin that cannot hold changes nothing."""
    pins = tmp_path / "pins"
    pins.write_text("")
    tiny_bundle.write(models)

    def pin(text):
        replacement = tmp_path / "pins.new"
        replacement.write_text(text)
        replacement.rename(pins)

    with (
        Running(models, pins_file=pins) as server,
        plain_channel(server.address) as channel,
        load(lambda: classify(channel)) as calls,
    ):
        until(lambda: "2" in calls.seen)
        pin("colours=1  # 2 mistakes wasps for bees\n")
        until(lambda: calls.versions[-1] == "1", what="the rollback")
        tiny_bundle.write(models)
        until(lambda: server.states() == {1: "READY", 2: "READY", 3: "READY"}, what="loading beside the pin")
        for nonsense in ("colours=9", "colours 2", "roses=1"):
            pin(nonsense)
            server.catalogue.refresh()
            assert server.answering() == (3 if nonsense.startswith("roses") else 1)
            pin("colours=1")
            server.catalogue.refresh()
        calls.more()
        assert calls.versions[-1] == "1"
        pin("")
        until(lambda: calls.versions[-1] == "3", what="the newest again")


def test_pin_that_cannot_hold_stops_the_start(models):
    """One line: the version that is not there, the one that fails, the model that is not there."""
    tiny_bundle.change_constant(tiny_bundle.write(models), "mean", 0.5)
    for pin, reason in (
        ("colours=7", "pinned to version 7, found 1, 2"),
        ("colours=2", "golden"),
        ("roses=1", "no model"),
    ):
        with pytest.raises(StartupError, match=reason):
            Running(models, pin=pin).catalogue.load_all()


@pytest.mark.parametrize(
    "changes", [{"pin": "colours"}, {"pin": "a=1,a=2"}, {"shadow": "a=1"}, {"shadow": "a=1:0"}, {"shadow": "a=1:1.5"}]
)
def test_pins_and_shadows_that_make_no_sense_are_refused(changes):
    """Before anything starts."""
    with pytest.raises(SettingsError, match="wanted one NAME"):
        ServerSettings(**changes)


def test_models_come_and_go(models):
    """Unnamed requests stay with the model that was alone at the start."""
    with Running(models) as server, plain_channel(server.address) as channel:
        folder = tiny_bundle.write(models, name="tints")
        until(lambda: server.states("tints") == {1: "READY"}, what="the new model")
        assert classify(channel, model="tints") == "1"
        assert server.catalogue.find().contract.name == "colours"
        hide(folder)
        until(lambda: not server.states("tints"), what="the model leaving")
        until(lambda: health_code(channel, "tints") == "NOT_FOUND", what="health of the model that left")


def test_lost_mount_changes_nothing(models):
    """An empty or absent folder is no order to stop."""
    with Running(models, watch_s=0) as server:
        away = models.rename(models.with_name("away"))
        server.catalogue.refresh()
        models.mkdir()
        server.catalogue.refresh()
        assert server.states() == {1: "READY"}
        models.rmdir()
        away.rename(models)


def test_lost_mount_of_one_model_changes_nothing(models):
    """Else its unnamed requests would be answered by another model; who wants it gone removes the folder."""
    tiny_bundle.write(models, name="shades")
    with Running(models, watch_s=0, default_model="") as server:
        until(server._server._watcher._task.done, what="the only look")
        away = (models / "colours").rename(models.with_name("away"))
        (models / "colours").mkdir()
        for look in (server.catalogue.let_go, server.catalogue.refresh):
            look()
            assert (server.states(), server.states("shades")) == ({1: "READY"}, {1: "READY"})
        (models / "colours").rmdir()
        server.catalogue.refresh()
        assert not server.states()
        away.rename(models / "colours")
        server.catalogue.refresh()
        assert server.states() == {1: "READY"}


def test_copy_under_another_number_is_refused(models):
    """Its answers would name the wrong version."""
    with Running(models, watch_s=0) as server:
        shutil.copytree(models / "colours" / "1", models / "colours" / "2")
        server.catalogue.refresh()
        (_, entry) = server.catalogue.entries()
        assert entry.state == "FAILED"
        assert "the manifest says colours/1" in entry.reason


def test_health_watchers_see_a_version_come_and_go(models):
    """As a balancer or an operator's alarm would."""
    with Running(models, keep=1) as server, plain_channel(server.address) as channel:
        ask = health_pb2.HealthCheckRequest(service="colours/2")
        told = (state.status for state in health_pb2_grpc.HealthStub(channel).Watch(ask, timeout=60))
        names = health_pb2.HealthCheckResponse.ServingStatus.Name
        seen = (status for status in told if names(status) != "NOT_SERVING")  # while it is loaded
        assert names(next(seen)) == "SERVICE_UNKNOWN"
        tiny_bundle.write(models)
        assert names(next(seen)) == "SERVING"
        tiny_bundle.write(models)
        assert names(next(seen)) == "SERVICE_UNKNOWN"


def test_many_swaps_leave_no_memory_behind(models):
    """Twelve versions with 4 MB of weights: the memory of those that left is gone, without the garbage collector."""
    with Running(models, watch_s=0, keep=1) as server:

        def swap():
            tiny_bundle.write(models, ballast_bytes=4 * 2**20)
            server.catalogue.refresh()
            server.catalogue.release(60)
            return resident_bytes()

        gc.disable()
        try:
            before = [swap() for _ in range(3)][-1]
            after = [swap() for _ in range(12)][-1]
        finally:
            gc.enable()
        assert server.states() == {versions(models, "colours")[-1]: "READY"}
        assert after - before < 24 * 2**20


class Leaver:
    """A version whose closing is seen."""

    def __init__(self, events):
        self._events = events

    def close(self, timeout_s):
        self._events.append("closed")
        return timeout_s > 0


def test_memory_is_given_back_once_what_left_is_closed(models, monkeypatch):
    """Not before, and not when nothing has left."""
    events = []
    monkeypatch.setattr("serving.upkeep.return_memory", lambda: events.append("given back"))
    catalogue = Catalogue(models, lambda _: Leaver(events), policy=VersionPolicy(keep=1))
    catalogue.load_all()
    catalogue.release(1)
    assert events == []
    tiny_bundle.write(models)
    catalogue.refresh()
    assert events == []
    catalogue.release(1)
    assert events == ["closed", "given back"]


def test_an_exit_closes_what_had_left_too(models):
    """A signal may come between a swap and the closing of the old version."""
    events = []
    catalogue = Catalogue(models, lambda _: Leaver(events), policy=VersionPolicy(keep=1))
    catalogue.load_all()
    tiny_bundle.write(models)
    catalogue.refresh()
    assert catalogue.close(LIMIT_S)
    assert events == ["closed"] * 2


def test_health_tells_of_a_swap_before_the_old_version_is_closed():
    """Its last requests may take as long as --drain-s."""
    events = []

    class Swapped:
        def refresh(self, **_):
            events.append("swapped")

        def release(self, timeout_s):
            events.append(f"closed within {timeout_s}")

    async def look_once():
        watcher = Watcher(Swapped(), lambda: events.append("told"), every_s=0, drain_s=7)
        watcher.start()
        await watcher.stop()

    asyncio.run(look_once())
    assert events == ["swapped", "told", "closed within 7"]


def test_the_default_model_that_has_left_is_missed_by_name(models):
    """Requests that name none are not answered by another model instead."""
    tiny_bundle.write(models, name="tints")
    with Running(models, watch_s=0, default_model="tints") as server, plain_channel(server.address) as channel:
        assert server.catalogue.find().contract.name == "tints"
        hide(models / "tints")
        server.catalogue.refresh()
        with pytest.raises(grpc.RpcError, match="no model 'tints'") as caught:
            classify(channel)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert classify(channel, model="colours") == "1"


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def health(channel, service):
    stub = health_pb2_grpc.HealthStub(channel)
    status = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=60, wait_for_ready=True).status
    return health_pb2.HealthCheckResponse.ServingStatus.Name(status)


def health_code(channel, service):
    try:
        health(channel, service)
    except grpc.RpcError as error:
        return error.code().name
    return "OK"


def test_swap_between_choosing_a_model_and_handing_it_the_pictures(models):
    """The thread that swaps may close a model that was just found: the request goes to its successor."""
    tiny_bundle.write(models)
    with Running(models) as server:
        until(lambda: server.states() == {1: "READY", 2: "READY"}, what="both versions")
        old, new = server.catalogue.find(version="1"), server.catalogue.find(version="2")
        old.close(LIMIT_S)
        found = iter([old, new])

        class Swapping:
            """A catalogue that swaps after the first look."""

            def find(self, model, version):
                return next(found)

        dispatcher = Dispatcher(Swapping(), max_images_per_request=1, metrics=server.metrics)
        assert server.call(dispatcher.classify([tiny_bundle.picture("red")], door="http")).model is new


@pytest.mark.parametrize("ends", [False, True])
def test_a_version_that_is_wanted_no_more_when_its_load_ends_never_answers(models, ends):
    """Its folder has left, or the server ends. It is no bad one: back again, it is tried anew."""
    events, catalogue = [], None

    def load_slowly(folder):
        if folder.name == "2":
            catalogue.start_draining() if ends else hide(folder)
        return Leaver(events)

    catalogue = Catalogue(models, load_slowly)
    catalogue.load_all()
    tiny_bundle.write(models)
    catalogue.refresh()
    assert [entry.version for entry in catalogue.entries()] == [1]
    assert events == ["closed"]
    if not ends:
        (models / "colours" / ".2").rename(models / "colours" / "2")
        catalogue.refresh()
        assert events == ["closed"] * 2


def test_what_has_just_come_is_not_let_go_for_an_older_look(models, monkeypatch):
    """While others are loaded, what left is looked for, one model at a time: another's folder may take long to list."""
    tiny_bundle.write(models, name="shades")
    catalogue = Catalogue(models, lambda _: Leaver([]), policy=VersionPolicy(keep=2))
    catalogue.load_all()
    asked = []

    def swap_meanwhile(place, name):
        found = versions(place, name)
        if name == "shades" and not asked:
            asked.append(name)
            tiny_bundle.write(models)
            catalogue.refresh()
        return found

    monkeypatch.setattr("serving.upkeep.versions", swap_meanwhile)
    catalogue.let_go()
    assert asked
    assert [entry.version for entry in catalogue.entries() if entry.name == "colours"] == [1, 2]


def test_there_is_no_moment_in_which_nothing_answers(models, monkeypatch):
    """The version that leaves and the one that takes its place change together."""
    tiny_bundle.write(models)
    catalogue = Catalogue(models, lambda _: Leaver([]), policy=VersionPolicy(keep=2))
    catalogue.load_all()
    catalogue.refresh()
    shelves, seen = catalogue._shelves, []
    change = shelves.change

    def change_and_look(name, how):
        before = change(name, how)
        seen.append(shelves[name].answering in shelves[name].ready())
        return before

    monkeypatch.setattr(shelves, "change", change_and_look)
    hide(models / "colours" / "2")
    catalogue.refresh()
    assert shelves["colours"].answering == 1
    assert seen
    assert all(seen)


def test_an_enormous_file_of_pins_is_not_read(tmp_path):
    """It is looked at every two seconds."""
    policy = VersionPolicy(pins_file=tmp_path / "pins")
    (tmp_path / "pins").write_text("a=1".ljust(2**16))
    assert policy.read_pins() == {"a": 1}
    (tmp_path / "pins").write_text("a=1".ljust(2**16 + 1))
    with pytest.raises(SettingsError, match="at most 65,536 bytes"):
        policy.read_pins()


def test_a_server_that_never_served_is_gone_at_once(models):
    """Nobody was sent to it: there is no traffic to wait for with --lame-duck-s."""
    settings = ServerSettings(address="127.0.0.1:0", http_address="off", instances=1, lame_duck_s=3600)
    metrics = Metrics()

    async def scene():
        catalogue = Catalogue(models, lambda folder: load_model(folder, settings, metrics=metrics))
        server = Server(catalogue, settings, metrics=metrics)
        await server.startup()
        async with asyncio.timeout(LIMIT_S):
            return await server.shutdown()

    assert asyncio.run(scene())


def test_a_reason_holds_nothing_that_a_terminal_would_obey():
    """It may quote what a stranger wrote."""
    assert plain_line("a\x1b[2J\nb") == "a?[2J?b"
    assert len(plain_line("a" * 2000)) == 1001


def test_a_status_names_some_of_many_models():
    """All of a thousand would not fit into what gRPC sends with it."""
    names = [f"model-{number:04}" for number in range(1000)]
    with pytest.raises(UnknownModelError, match=r"model-0000, model-0001.*model-0019, …;"):
        Unnamed().choose(names, answering=names)
    with pytest.raises(UnknownModelError, match=r"name one of a, b;"):
        Unnamed().choose(["b", "a"], answering=[])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_folder_that_belongs_to_another_by_now_is_another(models):
    """What could not be read before may be by now."""
    folder = models / "colours" / "1"
    before = fingerprint(folder)
    os.chown(folder / "bundle.json", 12345, -1)
    given = fingerprint(folder)
    os.chown(folder / "bundle.json", -1, 12345)
    assert len({before, given, fingerprint(folder)}) == 3


def test_a_model_that_was_refused_takes_no_request_without_a_name_away(models):
    """It is not served: there is one that is, at the start and later."""
    (models / "broken" / "1").mkdir(parents=True)
    (models / "broken" / "1" / "bundle.json").write_text("{}")
    with Running(models) as server, plain_channel(server.address) as channel:
        assert classify(channel) == "1"
        until(lambda: server.states("broken") == {1: "FAILED"}, what="the refusal")
        assert classify(channel) == "1"
        tiny_bundle.write(models, name="shades")
        until(lambda: server.states("shades") == {1: "READY"}, what="another model")
        assert classify(channel) == "1"


def test_a_key_that_is_trusted_by_now_brings_in_what_it_signed(models, tmp_path):
    """Without a touch of the model's own folder."""
    publics = []
    for number in (1, 2):
        publics.append(write_keys(tmp_path / f"{number}.pem"))
        if number == 2:
            tiny_bundle.write(models)
        sign(models / "colours" / str(number), tmp_path / f"{number}.pem")
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(publics[0].read_bytes())
    with Running(models, require_signature=trusted) as server:
        until(lambda: server.states() == {1: "READY", 2: "FAILED"}, what="the refusal")
        trusted.write_bytes(b"".join(public.read_bytes() for public in publics))
        until(lambda: server.states() == {1: "READY", 2: "READY"}, what="the new key")


def test_what_comes_when_all_that_answers_has_left_does_not_wait_for_another_look(models):
    """`mv colours/1 away; mv new colours/2` between two looks: else nobody would answer until the next."""
    catalogue = Catalogue(models, lambda _: Leaver([]))
    catalogue.load_all()
    catalogue.refresh(waits_for_whole=True)
    tiny_bundle.write(models)
    hide(models / "colours" / "1")
    catalogue.refresh(waits_for_whole=True)
    assert [(entry.version, entry.state) for entry in catalogue.entries()] == [(2, "READY")]
    assert catalogue.can_answer


def test_models_share_the_time_that_they_have_to_close(models):
    """Who stops the server waits for so long, however many models it has."""
    tiny_bundle.write(models, name="shades")
    given = []

    class Slow(Leaver):
        def close(self, timeout_s):
            given.append(timeout_s)
            threading.Event().wait(min(timeout_s, 0.3))
            return False

    catalogue = Catalogue(models, lambda _: Slow([]))
    catalogue.load_all()
    assert not catalogue.close(0.3)
    assert given == [pytest.approx(0.3, abs=0.1), 0.0]


def test_a_version_that_serves_stays_where_its_changed_folder_leaves_while_it_is_loaded(models):
    """As it was: until another look finds it gone."""
    loads = []

    def load(folder):
        loads.append(folder)
        if len(loads) == 2:
            hide(folder)
        return Leaver([])

    catalogue = Catalogue(models, load)
    catalogue.load_all()
    (models / "colours" / "1" / "note").write_text("changed")
    catalogue.refresh()
    assert len(loads) == 2
    assert catalogue.can_answer


def test_a_key_that_is_trusted_by_now_loads_nothing_that_serves_already(models, tmp_path):
    """Two of each model at once, and the plans of all to be found again, for a line in a file."""
    loads, trusted = [], tmp_path / "trusted.pem"
    trusted.write_text("one")
    catalogue = Catalogue(models, lambda folder: loads.append(folder) or Leaver([]), trusted=trusted)
    catalogue.load_all()
    trusted.write_text("one and another")
    catalogue.refresh()
    assert len(loads) == 1


def test_a_link_to_nowhere_costs_no_look(tmp_path):
    """Also a file that vanishes during one: else one model's folder ends the look at all."""
    (tmp_path / "model.onnx").write_bytes(b"1")
    before = fingerprint(tmp_path)
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    assert fingerprint(tmp_path) == before


def test_a_look_ends_in_a_folder_of_very_many_files(tmp_path, monkeypatch):
    """Somebody's data set was copied there."""
    monkeypatch.setattr("serving.shelves._MAX_FILES", 3)
    for number in range(9):
        (tmp_path / str(number)).touch()
    assert len(fingerprint(tmp_path)) == 3


def test_a_repaired_version_is_another_one_though_it_kept_its_times(tmp_path):
    """As archives and `cp -p` bring them."""
    file = tmp_path / "model.onnx"
    file.write_bytes(b"bad.")
    os.utime(file, (0, 0))
    before = fingerprint(tmp_path)
    file.write_bytes(b"good")
    os.utime(file, (0, 0))
    assert fingerprint(tmp_path) != before
