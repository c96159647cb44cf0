"""gRPC calls that hold back the last byte of their message, as no gRPC library can make them."""

import selectors
import socket
import struct
import threading
from collections import Counter
from contextlib import contextmanager

import h2.config
import h2.connection
import h2.events

_FRAME = 16_384


@contextmanager
def half_sent(address, *, path, calls, size_bytes):
    """Open so many calls of one method on one connection; the statuses they end with are counted in what this gives."""
    host, _, port = address.rpartition(":")
    ended, stop = Counter(), threading.Event()
    with socket.create_connection((host, int(port))) as connection:
        thread = threading.Thread(target=_send, args=(connection, path, calls, size_bytes, ended, stop))
        thread.start()
        try:
            yield ended
        finally:
            stop.set()
            thread.join()


def _send(connection, path, calls, size_bytes, ended, stop):
    http2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="ascii"))
    http2.initiate_connection()
    left = {}
    for _ in range(calls):
        stream = http2.get_next_available_stream_id()
        pseudo = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "test"}
        http2.send_headers(stream, [*pseudo.items(), ("te", "trailers"), ("content-type", "application/grpc")])
        http2.send_data(stream, struct.pack(">BI", 0, size_bytes))
        left[stream] = size_bytes - 1
    outgoing = http2.data_to_send()
    connection.setblocking(False)
    with selectors.DefaultSelector() as selector:
        selector.register(connection, selectors.EVENT_READ)
        while not stop.is_set():
            if not outgoing:
                for stream, count in left.items():
                    sent = min(count, _FRAME, http2.local_flow_control_window(stream))
                    if sent > 0:
                        http2.send_data(stream, bytes(sent))
                        left[stream] -= sent
                outgoing = http2.data_to_send()
            selector.modify(connection, selectors.EVENT_READ | (selectors.EVENT_WRITE if outgoing else 0))
            for _, ready in selector.select(0.02):
                if ready & selectors.EVENT_WRITE:
                    outgoing = outgoing[connection.send(outgoing) :]
                if ready & selectors.EVENT_READ:
                    _hear(http2, connection.recv(2**16), left, ended)


def _hear(http2, data, left, ended):
    for event in http2.receive_data(data):
        headers = dict(getattr(event, "headers", None) or ())
        if "grpc-status" in headers:
            ended[headers["grpc-status"]] += 1
        if "grpc-status" in headers or isinstance(event, h2.events.StreamReset):
            left.pop(event.stream_id, None)
