"""Cores and memory that a control group leaves to the process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from serving.cgroups import cpu_quota, memory_limit, usable_cores, usable_memory_bytes
from serving.settings import ServerSettings

V1 = Path("/sys/fs/cgroup/cpu")
V2 = Path("/sys/fs/cgroup")
ROOT = Path(__file__).parents[2]


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_tightest_limit_on_the_way_up_counts(tmp_path):
    """cgroup v2: a parent may allow less than its child."""
    write(tmp_path / "pod", cpu__max="150000 100000\n", memory__max="1000000\n")
    write(tmp_path / "pod" / "box", cpu__max="max 100000\n", memory__max="max\n")
    assert cpu_quota(tmp_path, membership="0::/pod/box\n") == 1.5
    assert memory_limit(tmp_path, membership="0::/pod/box\n") == 1_000_000


def test_limits_of_cgroup_v1(tmp_path):
    """Every controller has a tree of its own."""
    write(tmp_path / "cpu" / "box", cpu__cfs_quota_us="250000", cpu__cfs_period_us="100000")
    write(tmp_path / "memory", memory__limit_in_bytes="2000000")
    membership = "5:cpu,cpuacct:/box\n4:memory:/elsewhere\n"
    assert cpu_quota(tmp_path, membership=membership) == 2.5
    assert memory_limit(tmp_path, membership=membership) == 2_000_000


def test_no_limit_is_none(tmp_path):
    """v1 writes a huge number, v2 "max"; and there is always at least one core."""
    write(tmp_path / "memory", memory__limit_in_bytes="9223372036854771712")
    write(tmp_path, cpu__max="max 100000\n")
    assert cpu_quota(tmp_path) is None
    assert memory_limit(tmp_path) is None


def test_each_of_several_processes_plans_for_its_part_of_a_quota(tmp_path, monkeypatch):
    """Rounded up, at least one, at most what affinity allows."""
    monkeypatch.setattr("serving.cgroups._ROOT", tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2})
    write(tmp_path, cpu__max="250000 100000")
    assert [usable_cores(processes=count) for count in (1, 2, 3, 9)] == [3, 2, 1, 1]
    write(tmp_path, cpu__max="max 100000")
    assert [usable_cores(processes=count) for count in (1, 9)] == [3, 3]


def test_what_may_queue_is_a_part_of_a_workers_memory(monkeypatch):
    """A quarter, but one message at least; what is asked for where there is more."""
    monkeypatch.setattr("serving.cgroups.memory_limit_bytes", lambda: 400 * 2**20)
    assert ServerSettings().queue_bytes == 100 * 2**20
    assert ServerSettings(workers=2).queue_bytes == ServerSettings().max_message_bytes == 64 * 2**20
    assert ServerSettings(workers=2, max_message_bytes=2**20).queue_bytes == 50 * 2**20
    monkeypatch.setattr("serving.cgroups.memory_limit_bytes", lambda: None)
    assert ServerSettings().queue_bytes == 256 * 2**20


@pytest.fixture
def half_a_core():
    """A control group with half a core, and the file that a process joins it by."""
    for parent, files in ((V1, {"cpu__cfs_quota_us": "50000"}), (V2, {"cpu__max": "50000 100000"})):
        group = parent / f"calotype-test-{os.getpid()}"
        try:
            write(group, **files)
            yield group / "cgroup.procs"
            group.rmdir()
            return
        except OSError:
            if group.is_dir():
                group.rmdir()
    pytest.skip("no control group can be made here: wants root and a writable /sys/fs/cgroup")


def test_a_server_under_a_quota_of_half_a_core_plans_for_one(half_a_core, models):
    """A real quota, a real process: one instance, and pictures are answered."""
    script = (
        f"open({str(half_a_core)!r}, 'w').write('0')\n"
        "import sys\n"
        "from pathlib import Path\n"
        "from serving.cgroups import usable_cores\n"
        "from serving.loading import load_model\n"
        "from serving.metrics import Metrics\n"
        "from serving.settings import ServerSettings\n"
        "folder = Path(sys.argv[1])\n"
        "served = load_model(folder, ServerSettings(), metrics=Metrics())\n"
        "(future,) = served.submit([next((folder / 'golden').iterdir()).read_bytes()])\n"
        "print(usable_cores(), len(future.result(60).scores), served.close(60))\n"
    )
    command = [sys.executable, "-c", script, str(models / "colours" / "1")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert done.stdout.splitlines()[-1:] == ["1 3 True"], done.stderr


def test_a_quota_beyond_the_cores_that_are_here_gives_no_more_of_them(tmp_path, monkeypatch):
    """Eight may be allowed where three are."""
    monkeypatch.setattr("serving.cgroups._ROOT", tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2})
    write(tmp_path, cpu__max="800000 100000")
    assert usable_cores() == 3


def test_what_arrives_may_take_three_quarters_of_a_workers_memory(tmp_path, monkeypatch):
    """The rest is for what is here."""
    monkeypatch.setattr("serving.cgroups._ROOT", tmp_path)
    write(tmp_path, memory__max=str(400 * 2**20))
    assert ServerSettings().memory_bytes == 300 * 2**20
    assert ServerSettings(workers=2).memory_bytes == 150 * 2**20


def test_a_limit_beyond_what_the_machine_has_is_not_believed(monkeypatch):
    """Orchestrators set such; every bound would be off."""
    machine = usable_memory_bytes()
    monkeypatch.setattr("serving.cgroups.memory_limit_bytes", lambda: 2**50)
    assert usable_memory_bytes() <= machine < 2**50


def test_pictures_for_a_gpu_are_decoded_on_every_core(monkeypatch):
    """However few batches run at once there."""
    monkeypatch.setattr("serving.settings.usable_cores", lambda **_: 4)
    assert ServerSettings(provider="cuda", instances=1).decoders == 4
    assert ServerSettings(provider="cpu", instances=1).decoders == 1
    assert ServerSettings(provider="cuda", decode_threads=2).decoders == 2


def test_all_queues_together_have_a_quarter_of_the_memory(monkeypatch):
    """However many models there are, and whatever each of them may queue."""
    monkeypatch.setattr("serving.cgroups.memory_limit_bytes", lambda: 400 * 2**20)
    assert ServerSettings().encoded_bytes == 100 * 2**20
    assert ServerSettings(max_queue_bytes=80 * 2**20).queue_bytes == 80 * 2**20
