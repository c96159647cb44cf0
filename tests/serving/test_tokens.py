"""The gate alone, with a clock of its own."""

import errno
import hashlib
import os
from contextlib import suppress

import pytest

from serving import tokens
from serving.errors import RateLimitedError, SettingsError, TokensFileError, UnauthenticatedError
from serving.metrics import Metrics
from serving.tokens import Gate, new_token, read_tokens
from serving.watched import WatchedFiles

HASH = hashlib.sha256(b"secret").hexdigest()
RIGHT = "Bearer secret"
REASONS = ("token", "rate")


@pytest.fixture
def clock():
    """A list whose last value is the time in seconds."""
    return [0.0]


@pytest.fixture
def gate(tmp_path, clock):
    path = tmp_path / "tokens"
    path.write_text(f"alice:{HASH}:2\n")
    made = Gate(path, metrics=Metrics(), clock=lambda: clock[-1])
    made.open()
    return made


def test_a_token_cannot_be_guessed():
    """256 bits, six to a character: its hash is a fast one."""
    tokens = {new_token("alice", requests_per_s=0)[0] for _ in range(2)}
    assert len(tokens) == 2
    assert all(len(token.removeprefix("calotype_")) >= 43 for token in tokens)


def test_who_is_turned_away_is_counted_by_why(tmp_path):
    """Strangers apart from those who ask too often."""
    path, metrics = tmp_path / "tokens", Metrics()
    path.write_text(f"alice:{HASH}:2\n")
    gate = Gate(path, metrics=metrics, clock=lambda: 0.0)
    gate.open()
    for header in (None, "Bearer wrong", RIGHT, RIGHT, RIGHT):
        with suppress(UnauthenticatedError, RateLimitedError):
            gate.check(header)
    counts = {why: metrics.registry.get_sample_value("calotype_turned_away_total", {"reason": why}) for why in REASONS}
    assert counts == {"token": 2, "rate": 1}


def test_requests_come_back_with_time(gate, clock):
    """Two at once, then one every half second."""
    assert [gate.check(RIGHT), gate.check(RIGHT)] == ["alice", "alice"]
    with pytest.raises(RateLimitedError, match="alice") as caught:
        gate.check(RIGHT)
    assert caught.value.retry_after_s == pytest.approx(0.5)
    clock.append(0.5)
    gate.check(RIGHT)
    with pytest.raises(RateLimitedError):
        gate.check(RIGHT)
    clock.append(100.0)
    gate.check(RIGHT)
    gate.check(RIGHT)
    with pytest.raises(RateLimitedError):
        gate.check(RIGHT)


def test_reading_the_file_again_does_not_fill_the_bucket(gate, tmp_path):
    """Or a touch of the file would lift the limit."""
    gate.check(RIGHT)
    gate.check(RIGHT)
    (tmp_path / "tokens").write_text(f"# changed\nalice:{HASH}:2\n")
    with pytest.raises(RateLimitedError):
        gate.check(RIGHT)


@pytest.mark.parametrize("rate", [0.0, 0.00001, 0.5, 3.0, 123_456.7, 999_999.0])
def test_a_new_line_is_read_as_it_was_meant(tmp_path, rate):
    """Whatever the rate."""
    _, line = new_token("alice", requests_per_s=rate)
    (tmp_path / "tokens").write_text(f"{line}\n")
    assert read_tokens(tmp_path / "tokens") == (line,)


def test_a_rate_too_small_to_be_written_is_no_token_without_a_limit():
    """It would be rounded to 0, which is none."""
    with pytest.raises(SettingsError, match="found 1e-07 requests/s, wanted 0 or at least"):
        new_token("alice", requests_per_s=1e-7)


def test_vanished_file_keeps_its_tokens(gate, tmp_path):
    """Until there is a good one again."""
    (tmp_path / "tokens").unlink()
    assert gate.authenticate(RIGHT) == "alice"


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "secret",
        f"Bearer {HASH}",
        "Bearer é\udc80",
        "x" * 9999,
        f"Bearer{' ' * 600}secret",
    ],
)
def test_anything_else_is_unauthenticated(gate, header):
    """The hash itself opens nothing."""
    with pytest.raises(UnauthenticatedError):
        gate.check(header)


@pytest.mark.parametrize(
    "text", ["", "# nobody\n", "alice", f"alice:{HASH[1:]}", f"a b:{HASH}", f"a:{HASH}:-1", f"a:{HASH}\nb:{HASH}", "\0"]
)
def test_bad_file_is_refused_without_telling_its_content(tmp_path, text):
    """The message names the file and the line."""
    (tmp_path / "tokens").write_text(text)
    with pytest.raises(TokensFileError, match="tokens") as caught:
        read_tokens(tmp_path / "tokens")
    assert HASH[1:] not in str(caught.value)


def test_enormous_file_is_not_read(tmp_path):
    """More than a megabyte is no file of tokens."""
    (tmp_path / "tokens").write_bytes(b"#" * (2**20 + 1))
    with pytest.raises(TokensFileError, match="bytes"):
        read_tokens(tmp_path / "tokens")


def test_a_file_is_another_one_also_where_its_time_is_the_same(tmp_path):
    """A copy that keeps the time, and a rename: by its length and its inode."""
    path, watched = tmp_path / "tokens", WatchedFiles([tmp_path / "tokens"])
    path.write_text("one")
    os.utime(path, ns=(7, 7))
    assert [watched.have_changed(), watched.have_changed()] == [True, False]
    path.write_text("three")
    os.utime(path, ns=(7, 7))
    assert watched.have_changed()
    (tmp_path / "new").write_text("threw")
    os.utime(tmp_path / "new", ns=(7, 7))
    (tmp_path / "new").rename(path)
    assert watched.have_changed()


def test_a_file_that_may_be_read_by_now_is_another_one(tmp_path):
    """Its content and its time are the same: it was only its permissions."""
    path = tmp_path / "tokens"
    path.write_text("x")
    watched = WatchedFiles([path])
    assert watched.have_changed()
    assert not watched.have_changed()
    path.chmod(0o600)
    assert watched.have_changed()


def test_a_change_that_could_not_be_read_just_now_is_read_later(tmp_path, monkeypatch):
    """No descriptor was left when the operator took a token away."""
    path = tmp_path / "tokens"
    lost, lost_line = new_token("lost")
    kept, kept_line = new_token("kept")
    path.write_text(f"{lost_line}\n{kept_line}\n")
    gate = Gate(path, metrics=Metrics())
    gate.open()
    assert gate.check(f"Bearer {lost}") == "lost"
    path.write_text(f"{kept_line}\n")
    real = tokens.read_file

    def none_left(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(tokens, "read_file", none_left)
    assert gate.check(f"Bearer {kept}") == "kept"
    monkeypatch.setattr(tokens, "read_file", real)
    for _ in range(3):
        assert gate.check(f"Bearer {kept}") == "kept"
    with pytest.raises(UnauthenticatedError):
        gate.check(f"Bearer {lost}")


def test_less_than_one_request_a_second_comes_back_too(tmp_path):
    """One every two seconds: the bucket holds one, not half of one."""
    path, now = tmp_path / "tokens", [0.0]
    token, line = new_token("slow", requests_per_s=0.5)
    path.write_text(f"{line}\n")
    gate = Gate(path, metrics=Metrics(), clock=lambda: now[0])
    gate.open()
    for now[0] in (0.0, 2.0, 10.0):
        assert gate.check(f"Bearer {token}") == "slow"
        with pytest.raises(RateLimitedError):
            gate.check(f"Bearer {token}")


def test_a_file_that_an_editor_marked_as_utf8_is_read(tmp_path):
    """As pins are."""
    (_, line), path = new_token("alice"), tmp_path / "tokens"
    path.write_text(str(line), encoding="utf-8-sig")
    (read,) = read_tokens(path)
    assert read.name == "alice"
