"""A folder of models, `models/<name>/<version>/`: list it, read a bundle, add a version atomically.

Versions are positive integers. A new version is written in a hidden folder beside its place and renamed when it is
whole, so a reader never sees half a bundle. Every hash is checked before a byte is used.
"""

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bundle.contract import NAME_PATTERN, VERSION_PATTERN
from bundle.errors import BundleError
from bundle.files import read_hashed
from bundle.manifest import MANIFEST_NAME, GoldenPicture, Manifest, load_manifest, to_json
from bundle.preprocess import DEFAULT_LIMITS

GOLDEN_FOLDER: Final = "golden"
_NAME: Final = re.compile(NAME_PATTERN)
_MAX_FILE_BYTES: Final = 2**31  # an ONNX file, being one protobuf message, has less
_VERSION: Final = re.compile(VERSION_PATTERN)


@dataclass(frozen=True)
class Bundle:
    """A model folder whose manifest has been read and checked."""

    folder: Path
    manifest: Manifest

    @property
    def digest(self) -> str:
        """The sha256 of the manifest, which holds the hashes of all else: one name for the whole bundle."""
        return hashlib.sha256(to_json(self.manifest).encode()).hexdigest()

    def read(self, file: str, sha256: str, *, max_bytes: int = _MAX_FILE_BYTES) -> bytes:
        """Return a file's bytes after checking their hash, so that nothing changes between check and use."""
        path = self.folder / file
        try:
            data, found = read_hashed(path, max_bytes=max_bytes, sha256=sha256)
        except OSError as error:
            raise BundleError(
                f"{path}: {error.strerror}, but the manifest lists it; export the bundle again"
            ) from error
        if found != sha256:
            raise BundleError(
                f"{path}: sha256 is {found[:12]}, manifest says {sha256[:12]}; "
                "the file was changed after export, export the bundle again"
            )
        return data

    def golden_picture(self, item: GoldenPicture) -> bytes:
        """Return a golden picture's encoded bytes."""
        return self.read(f"{GOLDEN_FOLDER}/{item.file}", item.sha256, max_bytes=DEFAULT_LIMITS.max_bytes)

    def golden_pictures(self) -> list[bytes]:
        """Return those of all, in the manifest's order."""
        return [self.golden_picture(item) for item in self.manifest.golden]


def load_bundle(folder: Path) -> Bundle:
    """Read a model folder's manifest; raises BundleError. Files are hashed when they are read."""
    return Bundle(folder, load_manifest(folder))


def model_names(models: Path) -> list[str]:
    """Return the names below `models` that have at least one version, or cannot be looked into, sorted.

    Raises BundleError where `models` itself cannot be read.
    """
    try:
        entries = sorted(entry.name for entry in models.iterdir() if _NAME.fullmatch(entry.name) and _is_folder(entry))
    except OSError as error:
        raise BundleError(f"{models}: {error.strerror}; wanted a folder with models/<name>/<version>/") from error
    return [name for name in entries if _may_have_versions(models, name)]


def models_above(folder: Path) -> Path | None:
    """Return the folder of models that is meant where this is the one of a model, or of a version of it."""
    if (folder / MANIFEST_NAME).is_file():
        return folder.absolute().parent.parent
    is_model = any((entry / MANIFEST_NAME).is_file() for entry in folder.iterdir() if _VERSION.fullmatch(entry.name))
    return folder.absolute().parent if is_model else None


def versions(models: Path, name: str) -> list[int]:
    """Return a model's versions, ascending; empty where there is no such model.

    Raises BundleError where its folder cannot be read.
    """
    folder = models / name
    try:
        if not _NAME.fullmatch(name) or not folder.is_dir():
            return []
        entries = [entry.name for entry in folder.iterdir() if _is_folder(entry)]
    except OSError as error:
        raise BundleError(f"{folder}: {error.strerror}; let the user that runs this read it") from error
    return sorted(int(entry) for entry in entries if _VERSION.fullmatch(entry))


def is_empty(folder: Path) -> bool:
    """Say whether a folder is there with nothing at all in it, as a mount leaves it that was lost."""
    try:
        return not any(folder.iterdir())
    except OSError:
        return False


def newest(models: Path, name: str) -> Bundle:
    """Read a model's newest version; raises BundleError where there is none."""
    found = versions(models, name)
    if not found:
        raise BundleError(f"{models / name}: no versions; write one with `trainer export RUN --name {name}`")
    return load_bundle(models / name / str(found[-1]))


@contextmanager
def new_version(models: Path, name: str) -> Iterator[tuple[Path, int]]:
    """Yield an empty folder and its version number; it becomes `models/name/version` when the block ends well.

    When the block raises, nothing stays behind. Raises BundleError for a bad name, or when another writer took the
    same version meanwhile.
    """
    if not _NAME.fullmatch(name):
        raise BundleError(f"model name {name!r}: wanted 1 to 64 letters, digits, '.', '_' or '-', the first not a sign")
    parent = models / name
    made = [folder for folder in (parent, models) if not folder.exists()]
    parent.mkdir(parents=True, exist_ok=True)
    version = (versions(models, name) or [0])[-1] + 1
    staging = Path(tempfile.mkdtemp(prefix=f".{version}-", dir=parent))
    try:
        yield staging, version
        _sync(staging)
        staging.chmod(0o755)  # mkdtemp's 0700 would lock out the server's user
        _rename(staging, parent / str(version))
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        for folder in made:
            _remove_if_empty(folder)
        raise


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write bundle.json into a folder made by `new_version`."""
    (folder / MANIFEST_NAME).write_text(to_json(manifest), encoding="utf-8")


def listed_files(manifest: Manifest) -> dict[str, str]:
    """Return the sha256 of every file that a manifest lists, by its path inside the bundle."""
    hashes = {variant.file: variant.sha256 for variant in manifest.variants}
    hashes |= {twin.file: twin.sha256 for twin in manifest.twins}
    return hashes | {f"{GOLDEN_FOLDER}/{item.file}": item.sha256 for item in manifest.golden}


def file_sha256(path: Path) -> str:
    """Return a file's sha256 as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_folder(path: Path) -> bool:
    """Say so too where a link leads to where nobody may look: whoever opens it hears why."""
    try:
        return path.is_dir()
    except OSError:
        return True


def _may_have_versions(models: Path, name: str) -> bool:
    try:
        return bool(versions(models, name))
    except BundleError:  # the next one to ask for them hears why
        return True


def _rename(staging: Path, target: Path) -> None:
    try:
        staging.rename(target)
    except OSError as error:
        raise BundleError(f"{target}: {error.strerror}; another export took this version, export again") from error


def _sync(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
