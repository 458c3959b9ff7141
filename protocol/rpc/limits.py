"""Every limit of the gRPC shell in one place: sizes, counts, times. SPEC 9.3.

Sizes follow from the largest legal message, never from what a peer announces. Times are in seconds.
"""

from dataclasses import dataclass
from typing import Final

from protocol.rpc.frames import MAX_DELIVERY, MAX_PART, MAX_SUBMISSION
from secagg.types import Phase

SERVICE: Final = "secagg.v1.Aggregation"

MAX_TO_SERVER: Final = max(MAX_PART, MAX_SUBMISSION) + 4096  # just above one chunk of an upload
MAX_TO_CLIENT: Final = max(MAX_PART, MAX_DELIVERY) + 4096  # just above the longest frame: the signatures of 10,000
MAX_STREAMS: Final = 8  # per connection: bounds what a reset flood can allocate
MAX_METADATA: Final = 8 * 1024
BLOB_CHUNK: Final = 512 * 1024
MAX_BLOBS: Final = 4  # published models and sums kept in memory: those of the last two rounds
MAX_OUTBOX: Final = 64  # frames kept for a client that does not fetch them

# One semaphore per method, so that uploads cannot starve heartbeats. Polls are bounded by two per client.
SEND_SLOTS: Final = 16
UPLOAD_SLOTS: Final = 32
DOWNLOAD_SLOTS: Final = 16

POLL: Final = 10.0  # a long poll is answered at the latest after this time: empty means "still here, still waiting"
PART_IDLE: Final = 30.0  # between two parts of an upload
HANDSHAKE: Final = 5.0
SPARE_CONNECTIONS: Final = 256  # silent connections that do not keep a client out; they go after HANDSHAKE
KEEPALIVE: Final = 10.0
KEEPALIVE_TIMEOUT: Final = 5.0
RETURNING: Final = 10.0  # after a restart of the server, before it asks who is there: longer than a client's pauses

Options = list[tuple[str, int]]


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Longest duration of each phase. `grace`: a phase need not wait for clients that were away for so long."""

    advertise_keys: float = 60.0
    share_keys: float = 60.0
    masked_input: float = 1800.0  # local training lies in here
    consistency_check: float = 60.0
    unmasking: float = 60.0
    grace: float = 10.0
    opening: float = 1800.0  # of the decryptor, which reads every encrypted input

    def of(self, phase: Phase) -> float:
        """Seconds that an open phase may last."""
        lasting: dict[Phase, float] = {
            Phase.ADVERTISE_KEYS: self.advertise_keys,
            Phase.SHARE_KEYS: self.share_keys,
            Phase.INPUT_HASHES: self.masked_input,
            Phase.MASKED_INPUT: self.masked_input,
            Phase.CONSISTENCY_CHECK: self.consistency_check,
            Phase.UNMASKING: self.unmasking,
        }
        return lasting[phase]


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a client bears a server that does not answer, and how it tries again."""

    unreachable: float = 60.0  # since the last answer; then TransportError
    first_backoff: float = 0.2
    max_backoff: float = 5.0
    call: float = 30.0  # one short call; also one chunk of an upload that does not move

    def backoff(self, tries: int) -> float:
        """Pause after the given number of failed tries, tries >= 1."""
        return min(self.max_backoff, self.first_backoff * (1 << min(tries - 1, 16)))


def server_options(clients: int) -> Options:
    """Channel arguments of a server for a roster of `clients`."""
    return [
        *_common(),
        ("grpc.max_receive_message_length", MAX_TO_SERVER),
        ("grpc.max_send_message_length", MAX_TO_CLIENT),
        ("grpc.so_reuseport", 0),  # a second server on the same port must fail, not share it
        ("grpc.max_concurrent_streams", MAX_STREAMS),
        ("grpc.server_handshake_timeout_ms", int(1000 * HANDSHAKE)),
        ("grpc.max_allowed_incoming_connections", 4 * clients + SPARE_CONNECTIONS),
        ("grpc.http2.min_ping_interval_without_data_ms", int(500 * KEEPALIVE)),
    ]


def client_options() -> Options:
    """Channel arguments of a client. Reconnects quickly: `Patience` bounds how long."""
    return [
        *_common(),
        ("grpc.max_receive_message_length", MAX_TO_CLIENT),
        ("grpc.max_send_message_length", MAX_TO_SERVER),
        ("grpc.enable_retries", 0),  # every call is idempotent and repeated by us, with a bound and a name
        ("grpc.enable_http_proxy", 0),  # a proxy from the environment would see nothing, but breaks the connection
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.min_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 2000),
    ]


def _common() -> Options:
    return [
        ("grpc.max_metadata_size", MAX_METADATA),
        ("grpc.absolute_max_metadata_size", 2 * MAX_METADATA),
        ("grpc.compression_enabled_algorithms_bitset", 1),  # none: masked words do not compress, bombs do
        ("grpc.http2.lookahead_bytes", 1024 * 1024),
        ("grpc.http2.bdp_probe", 0),
        ("grpc.keepalive_time_ms", int(1000 * KEEPALIVE)),
        ("grpc.keepalive_timeout_ms", int(1000 * KEEPALIVE_TIMEOUT)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]
