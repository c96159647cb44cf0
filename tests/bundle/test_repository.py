"""A folder of models: what is listed, how a version is added, and what is noticed."""

import os
import tracemalloc
from pathlib import Path

import pytest

from bundle.errors import BundleError
from bundle.repository import file_sha256, load_bundle, model_names, new_version, newest, versions
from tests.bundle.tiny_bundle import MODEL_FILE, make_bundle


def test_versions_ascend_by_number(tmp_path: Path):
    """Ten comes after nine, and the next is eleven."""
    for version in (1, 9, 10):
        (tmp_path / "tiny" / str(version)).mkdir(parents=True)
    with new_version(tmp_path, "tiny") as (folder, version):
        (folder / "file").write_text("x")
    assert version == 11
    assert versions(tmp_path, "tiny") == [1, 9, 10, 11]


def test_a_new_version_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A machine that loses its power leaves a whole version or none."""
    synced = []
    monkeypatch.setattr("os.fsync", lambda number: synced.append((os.fstat(number).st_ino, versions(tmp_path, "tiny"))))
    with new_version(tmp_path, "tiny") as (folder, _):
        (folder / "sub").mkdir()
        for name in ("file", "sub/file"):
            (folder / name).write_text("x")
    files = [tmp_path / "tiny" / "1" / name for name in ("file", "sub/file")]
    assert sorted(synced) == sorted((file.stat().st_ino, []) for file in files)


def test_a_name_leads_to_no_other_folder(tmp_path: Path):
    """Whoever asks for it."""
    make_bundle(tmp_path / "models")
    assert versions(tmp_path / "models", "tiny") == [1]
    assert versions(tmp_path / "models", "../models/tiny") == []


def test_the_newest_version_is_read(tmp_path: Path):
    """A model that was exported twice is served in its second version."""
    make_bundle(tmp_path)
    make_bundle(tmp_path)
    assert newest(tmp_path, "tiny").manifest.contract.version == 2


def test_staging_is_invisible_until_the_block_ends(tmp_path: Path):
    """A reader never sees half a bundle."""
    with new_version(tmp_path / "models", "tiny") as (folder, _):
        (folder / "file").write_text("half")
        assert model_names(tmp_path / "models") == []
        assert versions(tmp_path / "models", "tiny") == []
    assert model_names(tmp_path / "models") == ["tiny"]
    assert (tmp_path / "models" / "tiny" / "1" / "file").read_text() == "half"
    assert (tmp_path / "models" / "tiny" / "1").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("stop", [ValueError, KeyboardInterrupt])
def test_nothing_stays_behind_an_exception(tmp_path: Path, stop: type[BaseException]):
    """Not even the folders that were made for it."""
    with pytest.raises(stop), new_version(tmp_path / "models", "tiny") as (folder, _):  # noqa: PT012
        (folder / "file").write_text("half")
        raise stop
    assert list(tmp_path.iterdir()) == []


def test_an_exception_leaves_older_versions_alone(tmp_path: Path):
    """Only the staging folder goes."""
    make_bundle(tmp_path)
    with pytest.raises(ValueError, match="stop"), new_version(tmp_path, "tiny"):
        raise ValueError("stop")
    assert [entry.name for entry in (tmp_path / "tiny").iterdir()] == ["1"]


def test_a_version_taken_meanwhile_is_refused(tmp_path: Path):
    """The first writer to finish keeps the version; the second is told and leaves nothing."""
    with pytest.raises(BundleError, match="another export took this version"), new_version(tmp_path, "tiny") as slow:  # noqa: PT012
        (slow[0] / "file").write_text("slow")
        with new_version(tmp_path, "tiny") as quick:
            (quick[0] / "file").write_text("quick")
    assert slow[1] == quick[1] == 1
    assert [entry.name for entry in (tmp_path / "tiny").iterdir()] == ["1"]
    assert (tmp_path / "tiny" / "1" / "file").read_text() == "quick"


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "../up", "a b", "x" * 65, "-flag", "tiny\n"])
def test_a_bad_model_name_is_refused(tmp_path: Path, name: str):
    """Nothing is written outside the folder, or under a name no reader lists."""
    with pytest.raises(BundleError, match="model name"), new_version(tmp_path / "models", name):
        pass
    assert list(tmp_path.iterdir()) == []
    assert versions(tmp_path, name) == []


def test_what_is_no_model_is_not_listed(tmp_path: Path):
    """Hidden folders, files, and folders without a version are passed over."""
    make_bundle(tmp_path, name="b")
    make_bundle(tmp_path, name="a")
    (tmp_path / ".cache" / "1").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "README").write_text("x")
    for entry in ("01", "0", "v2", ".3-x"):
        (tmp_path / "a" / entry).mkdir()
    (tmp_path / "a" / "7").write_text("a file")
    assert model_names(tmp_path) == ["a", "b"]
    assert versions(tmp_path, "a") == [1]


def test_a_model_that_cannot_be_looked_into_is_listed_and_named(tmp_path: Path, monkeypatch):
    """It may have versions: whoever asks for them hears why they are not seen."""
    make_bundle(tmp_path, name="a")
    look = Path.iterdir

    def look_or_refuse(path: Path):
        if path == tmp_path / "a":
            raise PermissionError(13, "Permission denied")
        return look(path)

    monkeypatch.setattr(Path, "iterdir", look_or_refuse)
    assert model_names(tmp_path) == ["a"]
    with pytest.raises(BundleError, match="a: Permission denied; let the user that runs this read it"):
        versions(tmp_path, "a")


def test_a_folder_of_models_that_is_not_there_is_named(tmp_path: Path):
    """A mistyped path is an expected error."""
    with pytest.raises(BundleError, match=r"absent: .*; wanted a folder with models/<name>/<version>/"):
        model_names(tmp_path / "absent")


def test_a_model_without_versions_is_named(tmp_path: Path):
    """The message holds the command that would write one."""
    with pytest.raises(BundleError, match=r"tiny: no versions.*--name tiny"):
        newest(tmp_path, "tiny")


def test_a_flipped_byte_is_noticed(tmp_path: Path):
    """The message gives both hashes and the next step."""
    bundle = make_bundle(tmp_path)
    path, variant = bundle.folder / MODEL_FILE, bundle.manifest.variants[0]
    data = path.read_bytes()
    assert bundle.read(variant.file, variant.sha256) == data
    assert file_sha256(path) == variant.sha256
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(BundleError, match=rf"manifest says {variant.sha256[:12]}.*export the bundle again"):
        bundle.read(variant.file, variant.sha256)


def test_what_is_no_file_is_neither_read_nor_waited_for(tmp_path: Path):
    """A device without an end, a pipe without a writer; a link to a file is one."""
    bundle = make_bundle(tmp_path)
    path = bundle.folder / "bundle.json"
    kept = path.rename(path.with_name("kept.json"))
    path.symlink_to(kept)
    assert load_bundle(bundle.folder) == bundle
    for make in (lambda: path.symlink_to("/dev/zero"), lambda: os.mkfifo(path), path.mkdir):
        path.unlink()
        make()
        with pytest.raises(BundleError, match=r"bundle\.json"):
            load_bundle(bundle.folder)


def test_a_file_of_another_hash_is_not_taken_into_memory(tmp_path: Path):
    """It may be as large as a model may be, and take no room on disk."""
    bundle = make_bundle(tmp_path)
    os.truncate(bundle.folder / MODEL_FILE, 2**30)
    tracemalloc.start()
    with pytest.raises(BundleError, match=r"sha256 is .*, manifest says"):
        bundle.read(MODEL_FILE, bundle.manifest.variants[0].sha256)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 2**21


def test_a_missing_file_is_noticed(tmp_path: Path):
    """A listed file that is not there names itself."""
    bundle = make_bundle(tmp_path)
    (bundle.folder / "golden" / "white.png").unlink()
    with pytest.raises(BundleError, match=r"white\.png: No such file or directory, but the manifest lists it"):
        bundle.golden_pictures()


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path):
    """An empty folder is no bundle."""
    with pytest.raises(BundleError, match=r"bundle\.json: No such file"):
        load_bundle(tmp_path)


def test_the_digest_is_that_of_the_content(tmp_path: Path):
    """Two loads agree, two versions differ."""
    first, second = make_bundle(tmp_path), make_bundle(tmp_path)
    assert load_bundle(first.folder).digest == first.digest != second.digest
