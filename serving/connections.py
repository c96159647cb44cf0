"""What a gRPC connection to the server may carry, and how long it lives."""

from serving.packed import LEAVE_PACKED
from serving.settings import ServerSettings


def connection_options(settings: ServerSettings) -> list[tuple[str, int]]:
    """Return the channel arguments of the server (grpc_types.h), each with its reason."""
    options = [
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        LEAVE_PACKED,  # compressed messages are unpacked one at a time, see `packed`
        # One connection can fill the queue but not the memory: further calls wait at the client, unsent. More than may
        # queue: else a caller whose calls share a connection waits, or sees UNAVAILABLE, and not a refusal that says
        # when to come again.
        ("grpc.max_concurrent_streams", settings.calls_per_connection),
        # What a call may send before anything is read: with gRPC's 64 KB an everyday picture comes in several turns,
        # each a round trip between two processes' loops (one caller, 140 KB: p50 0.3 to 0.6 ms more).
        ("grpc.http2.lookahead_bytes", 2**18),
        # No more than that: a window that grows with what the network carries lets hundreds of calls be in memory whole
        # before any of ours is asked (200 calls of 10 MB on one connection: 2,063 MB resident, 942 without).
        ("grpc.http2.bdp_probe", 0),
        # Beyond it connections are closed at once: both doors together stay below 1,024 descriptors, the usual limit.
        ("grpc.max_allowed_incoming_connections", settings.max_connections),
        ("grpc.server_handshake_timeout_ms", 10_000),  # a connection that never finishes its greeting: else 120 s
        # A client that vanished without a word is noticed after 80 s, and what it waited for leaves the queue.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),  # clients behind balancers ping every 30 s
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.so_reuseport", int(settings.workers > 1)),  # else two servers on one port must fail, not share it
    ]
    if settings.max_connection_age_s:
        # Connections last, so a new server behind a connection balancer would get no calls. gRPC adds 10 % of jitter
        # itself, so that clients do not all come back at once, and lets the calls under way finish.
        options += [
            ("grpc.max_connection_age_ms", round(1000 * settings.max_connection_age_s)),
            ("grpc.max_connection_age_grace_ms", round(1000 * settings.renewal_s)),
        ]
    return options
