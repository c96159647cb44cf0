"""Any HTTP request at all to a real server: an expected status, JSON where it is ours, nothing of the inside."""

import json
import socket
from http.client import HTTPResponse, IncompleteRead, RemoteDisconnected
from urllib.parse import quote

import tried
from broken_files import broken_files
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.serving import tiny_bundle

EXPECTED = {200, 400, 404, 405, 413, 415, 429, 431}
WAIT_S = 30
BOUNDARY = "frontier"

PICTURES = st.one_of(
    broken_files(), st.binary(max_size=50), st.sampled_from(tiny_bundle.LABELS).map(tiny_bundle.picture)
)
PATHS = st.one_of(
    st.sampled_from(
        ["/v1/classify", "/v1/models/colours:classify", "/v1/models", "/", "/readyz", "/page.js", "/metrics"]
    ),
    st.text(max_size=12).map(lambda name: f"/v1/models/{quote(name, safe='')}:classify"),
    st.sampled_from(["/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//x", "/v1/classify/", "/v1/classify%00"]),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20).map("/".__add__),
)
VALUES = st.one_of(
    st.integers().map(str),
    st.floats().map(str),
    st.text(max_size=6),
    st.sampled_from(["", "1", "0.5", "9" * 5000, "1_0"]),
)
QUERIES = st.one_of(
    st.just(""),
    st.lists(
        st.tuples(st.sampled_from(["version", "top_k", "min_score", "timeout_ms", "x"]), VALUES), min_size=1, max_size=3
    ).map(lambda pairs: "?" + "&".join(f"{name}={quote(value)}" for name, value in pairs)),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=12).map("?".__add__),
)
HEADER_VALUES = st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=30)
HEADERS = st.dictionaries(
    st.sampled_from(["accept", "accept-encoding", "x-request-id", "traceparent", "authorization", "expect", "range"]),
    HEADER_VALUES
    | st.sampled_from(["100-continue", "application/openmetrics-text; version=1.0.0;q=x", "gzip", "bytes=0-1"]),
    max_size=3,
)


@st.composite
def forms(draw):
    """Multipart forms of pictures, of other fields, with parts that are cut, doubled or not closed."""
    parts = []
    for data in draw(st.lists(PICTURES, max_size=9)):
        name = draw(st.sampled_from(["images", "images", "images", "other", '"', ""]))
        file = draw(st.sampled_from(['; filename="x.jpg"', "; filename*=utf-8''x", '; filename="../../x"', ""]))
        kind = draw(
            st.sampled_from(["content-type: image/jpeg\r\n", "content-transfer-encoding: base64\r\n", "", "x\r\n"])
        )
        head = f'content-disposition: form-data; name="{name}"{file}\r\n{kind}'
        parts.append(b"--" + BOUNDARY.encode() + b"\r\n" + head.encode() + b"\r\n" + data + b"\r\n")
    body = b"".join(parts) + draw(st.sampled_from([b"--" + BOUNDARY.encode() + b"--\r\n", b"--", b""]))
    place = draw(st.integers(0, len(body)))
    return (
        body[:place] + draw(st.sampled_from([b"", b"", b"", b"\r\n", b"\0", b"--" + BOUNDARY.encode()])) + body[place:]
    )


@st.composite
def requests(draw):
    """The bytes of a request whose lengths are right, or nearly."""
    content_type, body = draw(
        st.one_of(
            st.tuples(st.just(f"multipart/form-data; boundary={BOUNDARY}"), forms()),
            st.tuples(
                st.sampled_from(["image/jpeg", "multipart/form-data", "multipart/form-data; boundary=", "\xff"]),
                PICTURES,
            ),
        )
    )
    lines = [
        f"{draw(st.sampled_from(['POST', 'POST', 'POST', 'GET', 'HEAD', 'OPTIONS', 'PUT', 'X']))} "
        f"{draw(PATHS)}{draw(QUERIES)} HTTP/1.{draw(st.sampled_from('110'))}",
        f"host: {draw(st.sampled_from(['localhost', 'a b', '[', '']))}",
        "connection: close",
        f"content-type: {content_type}",
        *(f"{name}: {value}" for name, value in draw(HEADERS).items()),
    ]
    if draw(st.booleans()):
        lines.append("transfer-encoding: chunked")
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
    else:
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def exchange(port, data, *, is_all=False):
    """Send bytes, and that these are all; return status, headers and text of the answer, or None for no answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as connection:
        try:
            connection.sendall(data)
            if is_all:  # uvicorn takes that for a caller who has gone
                connection.shutdown(socket.SHUT_WR)
        except OSError:  # answered, and hung up, before it had read all
            pass
        method = data.partition(b" ")[0]
        answer = HTTPResponse(connection, method=method.decode("latin-1"))
        try:
            answer.begin()
            return answer.status, dict(answer.getheaders()), answer.read().decode()
        except (RemoteDisconnected, ConnectionResetError, IncompleteRead):
            return None


def check(server, status, headers, text):
    assert status in EXPECTED, text
    server.check_text(text)
    if headers.get("content-type") == "application/json" and text:
        answer = json.loads(text)
        assert (status == 200) == ("error" not in answer)


@tried.ROUND
@given(data=requests())
def test_any_request_gets_an_answer(server, data):
    """Whole requests."""
    tried.COUNTS["HTTP requests"] += 1
    found = exchange(server.http_port, data)
    assert found is not None
    check(server, *found)


@tried.ROUND
@given(data=requests(), place=st.integers(0, 400), change=st.binary(max_size=4))
def test_any_bytes_get_an_answer_or_an_end(server, data, place, change):
    """Damaged where the request line, the headers and the beginning of a body are; cut, or not HTTP at all."""
    tried.COUNTS["damaged HTTP requests"] += 1
    assume(place <= len(data))
    found = exchange(server.http_port, data[:place] + change + data[place + len(change) :], is_all=True)
    if found is not None:
        check(server, *found)


def test_http_still_serves(server):
    """After all that, of which nothing was unforeseen."""
    server.check_log()
    picture = tiny_bundle.picture("green")
    head = f"POST /v1/classify HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(picture)}\r\n\r\n"
    status, _, text = exchange(server.http_port, head.encode() + picture)
    assert status == 200
    assert json.loads(text)["results"][0]["predictions"][0]["label"] == "green"
