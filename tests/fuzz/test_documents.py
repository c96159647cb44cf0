"""Manifests and tokens files: read, or refused by the typed error with one line."""

import json
from contextlib import suppress

import pytest
import tried
from hypothesis import given
from hypothesis import strategies as st

from bundle.contract import check_embedded, contract_to_json
from bundle.errors import BundleError
from bundle.manifest import from_json, load_manifest, to_json
from serving.errors import TokensFileError, UnauthenticatedError
from serving.metrics import Metrics
from serving.tokens import Gate, new_token, read_tokens
from tests.serving import tiny_bundle

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(st.characters(codec=None), max_size=9)
)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return load_manifest(tiny_bundle.write(tmp_path_factory.mktemp("models")))


def _places(value, path=()):
    """Every path into a JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _places(inner, (*path, key))


def _changed(document, draw):
    """Put another value in one to three places, or take it away."""
    for _ in range(draw(st.integers(1, 3))):
        places = [place for place in _places(document) if place]
        *path, last = draw(st.sampled_from(places))
        inside = document
        for key in path:
            inside = inside[key]
        if draw(st.booleans()):
            inside[last] = draw(JSON)
        elif isinstance(inside, dict):
            del inside[last]
        else:
            inside.pop(last)
        if not document:
            break
    return document


@tried.ROUND
@given(chance=st.data())
def test_changed_manifests_are_refused_or_read_back_equal(manifest, chance):
    """A value of another type, size or place; a field too many or too few."""
    tried.COUNTS["changed manifests"] += 1
    document = _changed(json.loads(to_json(manifest)), chance.draw)
    try:
        read = from_json(json.dumps(document), source="bundle.json")
    except BundleError as error:
        assert str(error).startswith("bundle.json: ")  # noqa: PT017 -- either outcome is right
        return
    assert from_json(to_json(read), source="again") == read


@tried.ROUND
@given(chance=st.data())
def test_damaged_text_of_a_manifest_is_refused_or_read(manifest, chance):
    """Bytes that are cut, changed or inserted, up to what is no JSON and no UTF-8."""
    tried.COUNTS["damaged texts of manifests"] += 1
    text = bytearray(to_json(manifest).encode())
    for _ in range(chance.draw(st.integers(1, 4))):
        place = chance.draw(st.integers(0, len(text)))
        text[place : place + chance.draw(st.integers(0, 9))] = chance.draw(st.binary(max_size=6))
    for read in (
        lambda: from_json(bytes(text), source="x"),
        lambda: check_embedded(manifest.contract, text.decode(errors="replace"), source="x"),
        lambda: check_embedded(manifest.contract, contract_to_json(manifest.contract), source="x"),
    ):
        with suppress(BundleError):
            read()


@pytest.fixture(scope="module")
def gate(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokens") / "tokens"
    path.write_text(str(new_token("alice")[1]))
    made = Gate(path, metrics=Metrics())
    made.open()
    return made


@tried.ROUND
@given(header=st.none() | st.text(st.characters(codec=None)) | st.text().map("Bearer {}".format))
def test_no_header_opens_the_gate(gate, header):
    """Nobody guesses a token, and nothing else happens."""
    tried.COUNTS["authorization headers"] += 1
    with pytest.raises(UnauthenticatedError):
        gate.check(header)


LINES = st.lists(st.one_of(st.text(max_size=90), st.just(str(new_token("alice", requests_per_s=2.5)[1]))), max_size=4)


@tried.ROUND
@given(data=st.one_of(st.binary(), LINES.map("\n".join).map(lambda text: text.encode(errors="surrogatepass"))))
def test_any_tokens_file_is_read_or_refused(tmp_path_factory, data):
    """Read means: at least one line, each of which reads back equal."""
    tried.COUNTS["tokens files"] += 1
    path = tmp_path_factory.getbasetemp() / "fuzzed-tokens"
    path.write_bytes(data)
    try:
        lines = read_tokens(path)
    except TokensFileError:
        return
    path.write_text("\n".join(map(str, lines)))
    assert read_tokens(path) == lines != ()
