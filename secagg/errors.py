"""The error tree of the cryptographic core.

Every error says what was *found*, what was *expected* and what to *do*, and never carries a secret.
`code` is a stable identifier (``E1xx`` core, ``E2xx`` privacy, ``E3xx`` identity and transport,
``E4xx`` protocol, ``E5xx`` models and data, ``E6xx`` report).
"""


class SecAggError(Exception):
    """Base of all errors of `secagg`.

    Args:
        what: One short sentence: what is wrong.
        found: What was seen; never secret material.
        expected: What would have been right.
        do: The next action for the person who reads it.
        code: Stable error code; defaults to the class's own.
    """

    code = "E100"

    def __init__(
        self,
        what: str,
        *,
        found: object = None,
        expected: object = None,
        do: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.found = found
        self.expected = expected
        self.do = do
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        parts = [self.what]
        if self.found is not None:
            parts.append(f"found {self.found}")
        if self.expected is not None:
            parts.append(f"expected {self.expected}")
        return "; ".join(parts)


class ParameterError(SecAggError, ValueError):
    """Parameters that cannot give the promised security or correctness."""

    code = "E101"


class EncodingError(SecAggError, ValueError):
    """A value that does not fit: NaN, out of range, or no headroom for the sum."""

    code = "E102"


class AuthenticationError(SecAggError):
    """Authenticated decryption or a signature failed. Never says why."""

    code = "E103"


class ReconstructionError(SecAggError):
    """Secret shares that do not reconstruct what was committed to."""

    code = "E104"
