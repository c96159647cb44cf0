"""Which gRPC addresses are to be had: what the library would take half of, or away from another server, is refused."""

import socket

import pytest
from running import Running, classify, plain_channel

from serving.addresses import Address
from serving.errors import StartupError
from serving.listening import check_free, listen


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("127.0.0.1:-1", "found no port, wanted host:port"),
        ("127.0.0.1:+70000", "found no port, wanted host:port"),
        ("127.0.0.1:http", "found no port, wanted host:port"),
        ("127.0.0.1:", "found no port, wanted host:port"),
        ("localhost", "found no port, wanted host:port"),
        ("127.0.0.1:65536", "found port 65536, wanted 0..65535"),  # the library would take what 16 bits leave of it
        (":8080", "found no host, wanted host:port, such as localhost:8080"),
        ("::1:1", "found several colons, wanted [host]:port for IPv6"),
    ],
)
def test_what_is_no_address_is_refused(text, reason):
    """In one line that says what is missing."""
    with pytest.raises(StartupError) as raised:
        Address.parse(text)
    assert str(raised.value) == f"{text}: {reason}"


@pytest.mark.parametrize("text", ["nowhere.invalid:1", f"{'x' * 300}:1"])
def test_a_host_that_is_none_is_told(text):
    """gRPC would say so on a line of its own."""
    with pytest.raises(StartupError, match="wanted a host of this machine"):
        check_free(Address.parse(text), is_shared=False)


@pytest.mark.parametrize("text", ["localhost:1", "127.0.0.2:1", "[::1]:1", "unix:/run/x.sock", "unix-abstract:x"])
def test_loopback_has_many_forms(text):
    """All of which only this machine reaches."""
    assert Address.parse(text).is_loopback


@pytest.mark.parametrize("text", ["0.0.0.0:1", "[::]:1", "192.0.2.1:1", "example.org:1", "unixhost:1"])
def test_what_others_may_reach_is_no_loopback(text):
    """A host whose name begins like a socket's file is a host."""
    assert not Address.parse(text).is_loopback


def test_a_port_alone_is_on_the_host_of_the_other_door():
    """Or on this machine, beside a socket's file."""
    beside = [Address.parse(text).beside(":8080").text for text in ("[::1]:50051", "0.0.0.0:1", "unix:/run/x")]
    assert beside == ["[::1]:8080", "0.0.0.0:8080", "127.0.0.1:8080"]
    assert Address.parse("localhost:1").beside("[::]:8080").host == "::"


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="wants IPv6")
@pytest.mark.parametrize("text", ["[::]:0", "both.test:0"])
def test_http_is_heard_wherever_grpc_is(text, monkeypatch):
    """Through both families, on one port."""
    names = [(socket.AF_INET6, *[None] * 3, ("::1", 0, 0, 0)), (socket.AF_INET, *[None] * 3, ("127.0.0.1", 0))]
    lookup = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *a, **k: names if host == "both.test" else lookup(host, *a, **k)
    )
    listeners = listen(Address.parse(text), is_shared=False, backlog=1)
    port = listeners[0].getsockname()[1]
    for host in ("127.0.0.1", "::1"):
        socket.create_connection((host, port), timeout=5).close()
    with pytest.raises(StartupError, match="another server listens there; choose another --http-address, or off"):
        listen(Address.parse(text.replace(":0", f":{port}")), is_shared=False, backlog=1)
    for listener in listeners:
        listener.close()


def test_half_of_localhost_is_not_enough():
    """The library would be content with ::1."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(StartupError, match=r"127\.0\.0\.1 is taken by another server"):
            check_free(Address.parse(f"localhost:{port}"), is_shared=False)
        check_free(Address.parse(f"localhost:{port}"), is_shared=True)  # workers hold it together
    check_free(Address.parse(f"localhost:{port}"), is_shared=False)


def test_a_socket_file_belongs_to_whoever_answers_there(models, tmp_path):
    """A second server is refused, and takes nothing away; one whose owner has died is free."""
    address = f"unix:{tmp_path}/socket"
    with Running(models, address=address):
        with pytest.raises(StartupError, match="another server listens there"):
            check_free(Address.parse(address), is_shared=False)
        with plain_channel(address) as channel:
            classify(channel)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(f"{tmp_path}/left")
    check_free(Address.parse(f"unix:{tmp_path}/left"), is_shared=False)


def test_a_place_that_this_machine_has_not_is_left_out(monkeypatch):
    """localhost where there is no IPv6."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    places = [(socket.AF_INET, ("192.0.2.1", port)), (socket.AF_INET, ("127.0.0.1", port))]
    monkeypatch.setattr(Address, "places", lambda _: places)
    (one,) = listen(Address.parse(f"localhost:{port}"), is_shared=False, backlog=1)
    one.close()


def test_a_port_whose_last_connections_are_closing_is_free():
    """A restart would have to wait for a minute."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            taken, _ = server.accept()
            taken.close()  # first: it is this side that waits
            assert client.recv(1) == b""
    check_free(Address.parse(f"127.0.0.1:{port}"), is_shared=False)
