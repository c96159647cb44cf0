"""What a server logs, line by line."""

import io
import json
import logging
import os
import secrets
import signal
import subprocess
import sys
import warnings

import grpc
import pytest
import structlog
import tiny_bundle
from running import until
from test_process import ENVIRONMENT

from protos import classifier_pb2 as pb
from protos import classifier_pb2_grpc
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


@pytest.mark.parametrize("end", ["a reader that has gone", "a full disk"])
def test_a_log_that_cannot_be_written_costs_lines_and_nothing_else(models, tmp_path, end):
    """Refusals are answered, versions come, and SIGTERM drains."""
    reader, writer = os.pipe()
    if end == "a full disk":
        os.close(writer)
        writer = os.open("/dev/full", os.O_WRONLY)
    address = f"unix:{tmp_path}/socket"
    words = [sys.executable, "-m", "serving", "run", str(models), "--address", address, "--http-address", "off"]
    started = subprocess.Popen([*words, "--watch-s", "0.1"], stderr=writer, env=ENVIRONMENT)
    os.close(writer)
    os.close(reader)
    try:
        with grpc.insecure_channel(address) as channel:
            stub = classifier_pb2_grpc.ClassifierStub(channel)
            assert stub.Classify(request(), timeout=60, wait_for_ready=True).version == "1"
            with pytest.raises(grpc.RpcError, match="INVALID_ARGUMENT"):
                stub.Classify(pb.ClassifyRequest(), timeout=20)
            tiny_bundle.write(models)
            until(lambda: stub.Classify(request(), timeout=20).version == "2", what="the new version")
        started.send_signal(signal.SIGTERM)
        assert started.wait(60) == 0
    finally:
        started.kill()
        started.wait()


def request():
    return pb.ClassifyRequest(images=[tiny_bundle.picture("red")])


@pytest.mark.usefixtures("logging_as_it_was")
def test_what_libraries_say_is_a_line_with_its_source(monkeypatch):
    """An error stays one; below a warning they are not heard."""
    stderr = Writes()
    monkeypatch.setattr(sys, "stderr", stderr)
    configure_logs(log_format="json")
    logging.getLogger("grpc").error("broken %s", "pipe")
    logging.getLogger("uvicorn").info("hello")
    (line,) = map(json.loads, stderr.calls)
    assert (line["event"], line["level"], line["source"]) == ("broken pipe", "error", "grpc")


@pytest.mark.usefixtures("logging_as_it_was")
def test_words_of_a_library_that_do_not_fit_their_values_are_logged_as_they_are(monkeypatch):
    """And nothing is raised into the library."""
    stderr = Writes()
    monkeypatch.setattr(sys, "stderr", stderr)
    configure_logs(log_format="json")
    logging.getLogger("uvicorn").warning("%d connections", "many")
    (line,) = map(json.loads, stderr.calls)
    assert line["event"] == "%d connections"
