"""Which gRPC addresses are to be had: what the library would take half of, or away from another server, is refused."""

import socket

import pytest
from running import Running, classify, plain_channel

from serving.errors import StartupError
from serving.listening import check_free


@pytest.mark.parametrize("port", ["-1", "+70000", "65536", "http", ""])
def test_a_port_that_is_none_is_refused(port):
    """The library would take what 16 bits leave of it."""
    with pytest.raises(StartupError, match=r"a port is 0\.\.65535; choose another --address"):
        check_free(f"127.0.0.1:{port}", is_shared=False)


def test_half_of_localhost_is_not_enough():
    """The library would be content with ::1."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(StartupError, match=r"127\.0\.0\.1 is taken by another server"):
            check_free(f"localhost:{port}", is_shared=False)
        check_free(f"localhost:{port}", is_shared=True)  # workers hold it together
    check_free(f"localhost:{port}", is_shared=False)


def test_a_socket_file_belongs_to_whoever_answers_there(models, tmp_path):
    """A second server is refused, and takes nothing away; one whose owner has died is free."""
    address = f"unix:{tmp_path}/socket"
    with Running(models, address=address):
        with pytest.raises(StartupError, match="another server listens there"):
            check_free(address, is_shared=False)
        with plain_channel(address) as channel:
            classify(channel)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(f"{tmp_path}/left")
    check_free(f"unix:{tmp_path}/left", is_shared=False)
