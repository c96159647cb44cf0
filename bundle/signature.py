"""Who vouches for a bundle: an Ed25519 signature (RFC 8032) over the bytes of bundle.json, in `bundle.sig` beside it.

The manifest holds the sha256 of every model file and golden picture, so the one signature covers all that answers.
It does not cover what is made from the manifest for readers: sbom.json, MODEL_CARD.md, report.html. The file is the 64
raw bytes, so that `openssl pkeyutl -verify -rawin` can check it too. Only who asks for it pays for `cryptography`.
"""

import os
import re
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from bundle.errors import KeyFileError, SignatureError
from bundle.files import read_file
from bundle.manifest import MANIFEST_NAME, from_json, manifest_bytes
from bundle.repository import Bundle, listed_files

SIGNATURE_NAME: Final = "bundle.sig"
MAX_KEY_FILE_BYTES: Final = 64 * 2**10
_SIGNATURE_BYTES: Final = 64
_PUBLIC_KEY: Final = re.compile(rb"-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----", re.DOTALL)


def write_keys(private: Path) -> Path:
    """Write a new key pair: the private key, readable by its owner alone, and the public one beside it as .pub.

    Returns the public key's path. Raises KeyFileError rather than replace a key, OSError.
    """
    public = private.with_suffix(".pub")
    if private == public:
        raise KeyFileError(f"{private}: .pub is the public key's ending; name the private one, such as key.pem")
    for path in (private, public):
        if path.exists() or path.is_symlink():
            raise KeyFileError(f"{path}: is there already, and a lost key cannot be had back; choose another name")
    key = Ed25519PrivateKey.generate()
    private_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public_pem = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    with os.fdopen(os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(private_pem)
    public.write_bytes(public_pem)
    return public


def sign(folder: Path, private: Path) -> Path:
    """Check a whole bundle and write its signature, replacing an older one; return the signature's path.

    Raises KeyFileError, and BundleError where a file is not what the manifest says: nobody signs that.
    """
    key = _private_key(private)
    data = manifest_bytes(folder)
    check_files(Bundle(folder, from_json(data, source=str(folder / MANIFEST_NAME))))
    target = folder / SIGNATURE_NAME
    partial = folder / f".{SIGNATURE_NAME}.partial"
    partial.write_bytes(key.sign(data))
    partial.replace(target)
    return target


def verify(folder: Path, keys: Path) -> Bundle:
    """Read a model folder's manifest once one of the public keys in a PEM file has proved to have signed it.

    What is read is what was verified: the manifest's bytes are read once. Files are hashed when they are read. Raises
    SignatureError, KeyFileError, and BundleError as `load_bundle` does.
    """
    data = manifest_bytes(folder)
    _check_signature(folder, data, keys=keys)
    return Bundle(folder, from_json(data, source=str(folder / MANIFEST_NAME)))


def check_files(bundle: Bundle) -> list[str]:
    """Check the sha256 of every file that the manifest lists; return the names of those it does not, sorted.

    Raises BundleError where one is missing or changed.
    """
    listed = listed_files(bundle.manifest)
    for file, sha256 in listed.items():
        bundle.read(file, sha256)
    found = {str(path.relative_to(bundle.folder)) for path in bundle.folder.rglob("*") if not path.is_dir()}
    return sorted(found - {*listed, MANIFEST_NAME, SIGNATURE_NAME})


def trusted_keys(path: Path) -> list[Ed25519PublicKey]:
    """Return the Ed25519 public keys of a PEM file, at least one; raises KeyFileError."""
    pem = _read(path)
    if b"PRIVATE KEY" in pem:
        raise KeyFileError(f"{path}: holds a private key, which no server should have; give the .pub file beside it")
    keys = []
    for block in _PUBLIC_KEY.findall(pem):
        try:
            key = serialization.load_pem_public_key(block)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise KeyFileError(
                f"{path}: not a public key ({_brief(error)}); wanted what `trainer keygen` wrote"
            ) from error
        if not isinstance(key, Ed25519PublicKey):
            raise KeyFileError(f"{path}: found another kind of key, wanted Ed25519, as `trainer keygen` writes it")
        keys.append(key)
    if not keys:
        raise KeyFileError(f"{path}: found no public key, wanted PEM, as `trainer keygen` writes it")
    return keys


def _check_signature(folder: Path, data: bytes, *, keys: Path) -> None:
    trusted, path = trusted_keys(keys), folder / SIGNATURE_NAME
    try:
        signature = read_file(path, max_bytes=MAX_KEY_FILE_BYTES)
    except FileNotFoundError as error:
        raise SignatureError(f"{folder}: not signed; sign it with `trainer sign {folder} --key KEY.pem`") from error
    except OSError as error:
        raise SignatureError(f"{path}: {error.strerror}; wanted a signature that can be read") from error
    if len(signature) != _SIGNATURE_BYTES:
        raise SignatureError(f"{path}: not {_SIGNATURE_BYTES} bytes long; wanted what `trainer sign` wrote")
    if not any(_has_signed(key, signature, data) for key in trusted):
        raise SignatureError(
            f"{folder}: signed by none of the {len(trusted)} key(s) in {keys}, or {MANIFEST_NAME} was changed after; "
            "trust the key that signed it, or export and sign it again"
        )


def _has_signed(key: Ed25519PublicKey, signature: bytes, data: bytes) -> bool:
    try:
        key.verify(signature, data)
    except InvalidSignature:
        return False
    return True


def _private_key(path: Path) -> Ed25519PrivateKey:
    try:
        key = serialization.load_pem_private_key(_read(path), password=None)
    except (TypeError, ValueError, UnsupportedAlgorithm) as error:  # TypeError: it is encrypted
        raise KeyFileError(
            f"{path}: no private key to sign with ({_brief(error)}); make one with `trainer keygen`"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(f"{path}: found another kind of key, wanted Ed25519, as `trainer keygen` writes it")
    return key


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_KEY_FILE_BYTES + 1)
    except OSError as error:
        raise KeyFileError(f"{path}: {error.strerror}; wanted a PEM file of keys") from error
    if len(data) > MAX_KEY_FILE_BYTES:
        raise KeyFileError(f"{path}: over {MAX_KEY_FILE_BYTES:,} bytes, wanted a PEM file of keys")
    return data
