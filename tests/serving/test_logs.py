"""What a server logs, line by line."""

import io
import json
import logging
import secrets
import sys
import warnings

import pytest
import structlog

from serving.logs import configure_logs


class Writes(io.StringIO):
    """A stderr that keeps what each call of write got."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def write(self, text):
        self.calls.append(text)
        return super().write(text)


@pytest.fixture
def logging_as_it_was():
    """Give the others back what a test sets."""
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    structlog.reset_defaults()
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


@pytest.mark.usefixtures("logging_as_it_was")
@pytest.mark.parametrize("log_format", ["console", "json"])
def test_a_line_is_one_write(monkeypatch, log_format):
    """Workers share one stderr: with its end in a write of its own, two lines of two processes became one."""
    stderr = Writes()
    monkeypatch.setattr(sys, "stderr", stderr)
    configure_logs(log_format=log_format)
    structlog.get_logger().info("first", number=1)
    structlog.get_logger().error("second", reason="a reason")
    assert len(stderr.calls) == 2
    assert all(call.endswith("\n") and call.count("\n") == 1 for call in stderr.calls)
    if log_format == "json":
        assert [json.loads(call)["event"] for call in stderr.calls] == ["first", "second"]


@pytest.mark.usefixtures("logging_as_it_was")
def test_what_pillow_thinks_of_a_picture_is_no_line_of_the_log():
    """A TIFF of 776 KB made 129,400 of them."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        configure_logs()
        for module in ("PIL.TiffImagePlugin", "other"):
            warnings.warn_explicit("odd", UserWarning, "file", 1, module=module)
    assert len(heard) == 1


@pytest.mark.usefixtures("logging_as_it_was")
@pytest.mark.parametrize("log_format", ["console", "json"])
def test_a_traceback_shows_where_but_no_variable(monkeypatch, log_format):
    """The variables of a request are its token and its pictures."""
    stderr = Writes()
    monkeypatch.setattr(sys, "stderr", stderr)
    configure_logs(log_format=log_format)

    secret = secrets.token_hex()

    def answer(token):
        raise ZeroDivisionError(len(token))

    try:
        answer(secret)
    except ZeroDivisionError as error:
        structlog.get_logger().error("unforeseen error", exc_info=error)
    told = "".join(stderr.calls)
    assert ("ZeroDivisionError" in told, "test_logs.py" in told, "answer" in told) == (True, True, True)
    assert secret not in told
