"""The error tree of the protocol: whose fault it is stands in the class."""

from secagg.errors import SecAggError


class ProtocolError(SecAggError):
    """Base of all errors of `protocol`."""

    code = "E400"


class LocalProtocolError(ProtocolError):
    """A call that is illegal in the current state: our bug. The state is unchanged."""

    code = "E401"


class RemoteProtocolError(ProtocolError):
    """The peer broke the protocol. The session aborts for good and its secrets are erased."""

    code = "E402"


class DocumentError(ProtocolError):
    """A signed document (roster, manifest, report) that is not what its owner signed."""

    code = "E301"


class TransportError(ProtocolError):
    """The connection failed. Always raised ``from`` its cause."""

    code = "E310"
