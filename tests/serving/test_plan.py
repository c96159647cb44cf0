"""Threads from cores and quotas."""

from serving.classifier import batch_sizes
from serving.plan import Plan, cgroup_quota, make_plan, usable_cores


def test_cpu_plan_runs_one_thread_instances_side_by_side():
    """One instance a core, one thread each, and each decodes its own."""
    assert make_plan(cores=4, provider="cpu") == Plan(instances=4, intra_op_threads=1, decode_threads=0, max_batch=4)


def test_cuda_plan_has_one_instance():
    """A GPU takes large batches one after the other."""
    plan = make_plan(cores=4, provider="cuda")
    assert (plan.instances, plan.decode_threads, plan.max_batch) == (1, 4, 32)


def test_given_numbers_are_taken():
    """0 alone means: decide."""
    plan = make_plan(cores=4, provider="cpu", instances=2, intra_op_threads=3, decode_threads=5, max_batch=6)
    assert plan == Plan(instances=2, intra_op_threads=3, decode_threads=5, max_batch=6)


def test_tightest_quota_on_the_way_up_counts(tmp_path):
    """cgroup v2: a parent may allow less than its child."""
    (tmp_path / "pod" / "box").mkdir(parents=True)
    (tmp_path / "pod" / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "pod" / "box" / "cpu.max").write_text("max 100000\n")
    assert cgroup_quota(tmp_path, own="/pod/box") == 1.5


def test_quota_of_cgroup_v1(tmp_path):
    """The older files are read too."""
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("250000")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert cgroup_quota(tmp_path) == 2.5


def test_no_quota_is_none(tmp_path):
    """And there is always at least one core."""
    assert cgroup_quota(tmp_path) is None
    assert usable_cores() >= 1


def test_batch_sizes_end_with_the_largest():
    """Powers of two, and the limit itself."""
    assert [batch_sizes(limit) for limit in (1, 8, 12)] == [(1,), (1, 2, 4, 8), (1, 2, 4, 8, 12)]
