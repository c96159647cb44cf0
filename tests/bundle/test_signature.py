"""Whose bundle it is: signed as it stands by a trusted key, or refused with the reason."""

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from bundle.errors import BundleError, KeyFileError, SignatureError
from bundle.manifest import Twin
from bundle.repository import Bundle
from bundle.signature import check_files, sign, trusted_keys, verify, write_keys
from tests.bundle.tiny_bundle import MODEL_FILE, make_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A bundle whose every listed file is there."""
    made = make_bundle(tmp_path / "models", twins=())
    assert check_files(made) == []
    return made


@pytest.fixture
def private(tmp_path: Path) -> Path:
    write_keys(tmp_path / "key.pem")
    return tmp_path / "key.pem"


def other_key(tmp_path: Path) -> Path:
    return write_keys(tmp_path / "other.pem")


def test_private_key_is_its_owners_alone(private: Path):
    """Mode 0600 from its first byte; the public key is for everyone."""
    assert private.stat().st_mode & 0o777 == 0o600
    assert len(trusted_keys(private.with_suffix(".pub"))) == 1


@pytest.mark.parametrize("name", ["key.pem", "key.pub", "key.txt"])
def test_key_is_never_replaced(private: Path, name: str):
    """Neither half of a pair that is there."""
    before = private.read_bytes(), private.with_suffix(".pub").read_bytes()
    with pytest.raises(KeyFileError):
        write_keys(private.with_name(name))
    assert (private.read_bytes(), private.with_suffix(".pub").read_bytes()) == before
    assert not private.with_name("key.txt").exists()


def test_signed_bundle_verifies(bundle: Bundle, private: Path):
    """The manifest that was verified is the one that is returned; nothing but bundle.sig was added."""
    sign(bundle.folder, private)
    assert verify(bundle.folder, private.with_suffix(".pub")) == bundle
    assert check_files(bundle) == []


def test_a_twin_is_signed_too(tmp_path: Path, private: Path):
    """Also what the server does not run."""
    twin = b"torchscript"
    listed = Twin(runtime="torchscript", file="model.pt", sha256=hashlib.sha256(twin).hexdigest())
    made = make_bundle(tmp_path / "others", twins=(listed,))
    (made.folder / "model.pt").write_bytes(twin)
    sign(made.folder, private)
    assert check_files(made) == []
    (made.folder / "model.pt").write_bytes(b"another")
    with pytest.raises(BundleError, match=r"model\.pt: sha256 is"):
        check_files(made)


def test_signature_is_what_openssl_checks(bundle: Bundle, private: Path):
    """64 raw bytes over the bytes of bundle.json: no format of our own."""
    if not shutil.which("openssl"):
        pytest.skip("no openssl here")
    signature = sign(bundle.folder, private)
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", str(private.with_suffix(".pub")), "-rawin"]
    command += ["-in", str(bundle.folder / "bundle.json"), "-sigfile", str(signature)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_one_of_several_keys_is_enough(bundle: Bundle, private: Path, tmp_path: Path):
    """Keys are exchanged by trusting the old and the new for a while: two blocks in one file."""
    sign(bundle.folder, private)
    both = tmp_path / "both.pub"
    both.write_bytes(other_key(tmp_path).read_bytes() + b"\n# the old one\n" + private.with_suffix(".pub").read_bytes())
    assert verify(bundle.folder, both) == bundle
    with pytest.raises(SignatureError, match="signed by none of the 1 key"):
        verify(bundle.folder, tmp_path / "other.pub")


def test_unsigned_bundle_is_refused(bundle: Bundle, private: Path):
    """And the way out is named."""
    with pytest.raises(SignatureError, match="not signed; sign it with `trainer sign"):
        verify(bundle.folder, private.with_suffix(".pub"))


def test_every_changed_byte_of_the_manifest_shows(bundle: Bundle, private: Path):
    """Also one that changes no meaning, such as a blank more."""
    sign(bundle.folder, private)
    manifest = bundle.folder / "bundle.json"
    whole = manifest.read_bytes()
    for changed in (whole + b" ", whole.replace(b"light", b"Light", 1), whole[:-1]):
        assert changed != whole
        manifest.write_bytes(changed)
        with pytest.raises(SignatureError, match="changed after"):
            verify(bundle.folder, private.with_suffix(".pub"))


@pytest.mark.parametrize("damage", [b"", b"\0" * 64, b"\0" * 63, b"\0" * 10_000], ids=["none", "zeros", "63", "10,000"])
def test_damaged_signature_is_refused(bundle: Bundle, private: Path, damage: bytes):
    """Of the right length or not."""
    sign(bundle.folder, private).write_bytes(damage)
    with pytest.raises(SignatureError):
        verify(bundle.folder, private.with_suffix(".pub"))


@pytest.mark.parametrize("file", [MODEL_FILE, "golden/black.png"])
def test_changed_file_shows_by_its_hash(bundle: Bundle, private: Path, file: str):
    """The signature holds, since the manifest does, but the file is not the one it names; nobody signs it either."""
    sign(bundle.folder, private)
    path = bundle.folder / file
    path.write_bytes(path.read_bytes() + b"\0")
    signed = verify(bundle.folder, private.with_suffix(".pub"))
    with pytest.raises(BundleError, match="sha256 is"):
        check_files(signed)
    with pytest.raises(BundleError, match="sha256 is"):
        sign(bundle.folder, private)


def test_files_that_no_hash_covers_are_named(bundle: Bundle):
    """Whoever reads them should know, wherever they are."""
    (bundle.folder / "report.html").touch()
    (bundle.folder / "golden" / "stranger.png").touch()
    assert check_files(bundle) == ["golden/stranger.png", "report.html"]


def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=1024)


def private_pem(key: rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey, password: bytes = b"") -> bytes:
    locked = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked)


def public_pem(key: rsa.RSAPrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda: b"", "no public key"),
        (lambda: b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "not a public key"),
        (lambda: public_pem(rsa_key()), "another kind of key"),
        (lambda: private_pem(ed25519.Ed25519PrivateKey.generate()), "holds a private key"),
        (lambda: b"x" * 70_000, "over 65,536 bytes"),
    ],
)
def test_file_without_public_keys_is_refused(tmp_path: Path, content, reason: str):
    """Each mistake has its own line; a server is never given a private key in silence."""
    (tmp_path / "keys").write_bytes(content())
    with pytest.raises(KeyFileError, match=reason):
        trusted_keys(tmp_path / "keys")


@pytest.mark.parametrize(
    "content",
    [
        lambda: b"",
        lambda: private_pem(rsa_key()),
        lambda: private_pem(ed25519.Ed25519PrivateKey.generate(), b"secret"),
    ],
    ids=["empty", "RSA", "encrypted"],
)
def test_nothing_is_signed_with_another_key(bundle: Bundle, tmp_path: Path, content):
    """No signature is left behind."""
    (tmp_path / "key").write_bytes(content())
    with pytest.raises(KeyFileError):
        sign(bundle.folder, tmp_path / "key")
    assert check_files(bundle) == []
    assert not (bundle.folder / "bundle.sig").exists()


def test_missing_key_file_is_one_line(tmp_path: Path):
    """With the file's name."""
    with pytest.raises(KeyFileError, match=r"keys\.pub: No such file"):
        trusted_keys(tmp_path / "keys.pub")
