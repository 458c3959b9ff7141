"""Errors to gRPC status and back. The one place that catches everything. SPEC 9.5.

A server never shows a peer why it failed inside: the peer gets INTERNAL, the operator gets the error, and the attempt
ends. A client never shows a person a status code: it gets what was found and what to do.
"""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import grpc
import grpc.aio

from protocol.errors import RemoteProtocolError, TransportError
from secagg.errors import SecAggError

MAX_DETAILS: Final = 1500

# Worth another try: the server or the network may be back in a moment.
TRANSIENT: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.FAILED_PRECONDITION,  # an upload that was given up: asked again, the server says why
    }
)
# Never cured by waiting: gRPC reports them as UNAVAILABLE.
_WRONG_SERVER: Final = ("CERTIFICATE_VERIFY_FAILED", "Hostname Verification", "No match found for server name")

_log = logging.getLogger("secagg.rpc")

Context = grpc.aio.ServicerContext[bytes, bytes]


class Refusal(Exception):
    """A call is answered with a status instead of a message. `text` is for the person behind the peer."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code, self.text = code, text


@asynccontextmanager
async def errors_as_status(context: Context, failed: Callable[[Exception], None]) -> AsyncIterator[None]:
    """Turn whatever the body raises into the call's status; `failed` is told of what is our own fault."""
    try:
        yield
        return
    except Refusal as refusal:
        code, text = refusal.code, refusal.text
    except RemoteProtocolError as error:
        code, text = grpc.StatusCode.INVALID_ARGUMENT, describe(error)
    except TransportError as error:
        _log.warning("refused: %s", describe(error))
        code, text = grpc.StatusCode.RESOURCE_EXHAUSTED, describe(error)
        if error.code == "E342":
            code = grpc.StatusCode.FAILED_PRECONDITION
    except grpc.aio.AbortError:
        raise
    except Exception as error:
        # The type only: an unforeseen text might quote what it should not.
        _log.error("a call failed inside the server: %s", type(error).__name__)
        code, text = grpc.StatusCode.INTERNAL, "[E400] the server failed; its operator has the reason"
        failed(error)
    await context.abort(code, text[:MAX_DETAILS])


def describe(error: SecAggError) -> str:
    """One line: code, what, found, expected."""
    return f"[{error.code}] {error}"


# gRPC's words for "the server ended the call while we were writing"; the server's own status is lost then, and every
# call may be repeated, so it is asked again.
_CUT_OFF: Final = ("execute_batch", "RST_STREAM")


def is_transient(code: grpc.StatusCode, details: str) -> bool:
    """Whether the same call may succeed later."""
    if code is grpc.StatusCode.INTERNAL and any(sign in details for sign in _CUT_OFF):
        return True
    return code in TRANSIENT and not any(sign in details for sign in _WRONG_SERVER)


def transport_error(code: grpc.StatusCode, details: str, target: str, seconds: float) -> TransportError:
    """What a person is told when a call failed for good after `seconds`. Raise it ``from`` its cause."""
    details = " ".join(details.split())[:MAX_DETAILS] or "no details"
    match code:
        case grpc.StatusCode.PERMISSION_DENIED:
            return TransportError(
                f"the server at {target} does not know this client",
                found=details,
                expected="a valid certificate whose key stands in the server's roster",
                do="use this site's own certificate, or ask the owner for a roster with this site in it",
                code="E304",
            )
        case grpc.StatusCode.UNIMPLEMENTED:
            return TransportError(
                f"what answers at {target} is no aggregation server of this version",
                found=details,
                expected="service secagg.v1.Aggregation",
                do="check host and port, and that both sides run the same version of secagg",
                code="E344",
            )
        case grpc.StatusCode.UNAVAILABLE if any(sign in details for sign in _WRONG_SERVER):
            return TransportError(
                f"the server at {target} is not the server of this consortium",
                found=details,
                expected="a certificate of the consortium's CA for this host name",
                do="check host and port, and compare the CA's fingerprint with the owner's",
                code="E345",
            )
        case _ if code in TRANSIENT:
            return TransportError(
                f"the server at {target} does not answer",
                found=f"{details}, for {seconds:.0f} s",
                expected="a running server of this consortium",
                do="check that the server runs and that host, port and firewall are right; a server that rejects"
                " this site's certificate closes the connection without a word, so check its dates as well",
                code="E310",
            )
        case _:
            return TransportError(
                f"the server at {target} refused a call",
                found=f"{code.name}: {details}",
                do="read the server's log",
                code="E346",
            )
