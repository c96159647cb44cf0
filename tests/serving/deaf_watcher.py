"""A health Watch whose caller lets nothing be written to it, as no gRPC library can make one."""

import socket
import struct
import threading
from contextlib import contextmanager, suppress

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
from grpc_health.v1 import health_pb2

WATCH = "/grpc.health.v1.Health/Watch"


@contextmanager
def deaf_watcher(address, *, service=""):
    """Watch with a window of 0 bytes; begun when the server has acknowledged it."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port))) as connection:
        http2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="ascii"))
        http2.initiate_connection()
        http2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0})
        pseudo = {":method": "POST", ":scheme": "http", ":path": WATCH, ":authority": "test"}
        http2.send_headers(1, [*pseudo.items(), ("te", "trailers"), ("content-type", "application/grpc")])
        body = health_pb2.HealthCheckRequest(service=service).SerializeToString()
        http2.send_data(1, struct.pack(">BI", 0, len(body)) + body, end_stream=True)
        connection.sendall(http2.data_to_send())
        is_begun = threading.Event()
        thread = threading.Thread(target=_listen, args=(connection, http2, is_begun))
        thread.start()
        assert is_begun.wait(30)
        try:
            yield
        finally:
            connection.shutdown(socket.SHUT_RDWR)
            thread.join()


def _listen(connection, http2, is_begun):
    """Acknowledge what must be; the response's headers say that the call has begun."""
    with suppress(OSError, h2.exceptions.ProtocolError):  # it pings also after its goodbye
        while data := connection.recv(65_536):
            for event in http2.receive_data(data):
                if isinstance(event, h2.events.ResponseReceived):
                    is_begun.set()
            connection.sendall(http2.data_to_send())
