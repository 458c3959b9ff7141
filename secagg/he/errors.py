"""What can be wrong with bytes of a peer, and with the order of calls: one class each."""

from secagg.errors import SecAggError


class CiphertextError(SecAggError):
    """A ciphertext or public key that is not exactly what these parameters allow: its sender's fault."""

    code = "E105"


class OpeningError(SecAggError):
    """A step that the decryptor refuses: a second opening, a summand given twice, a sum of too few."""

    code = "E106"


class DisagreementError(SecAggError):
    """What was opened is no sum of limbs: a summand under another key, altered, or not honestly encrypted."""

    code = "E107"


class WorkerError(SecAggError):
    """The process that evaluates and decrypts ended: by a signal it is the fault of whoever sent the last bytes.

    Attributes:
        signal: Number of the signal, or None if it ended by itself.
        client: Whose ciphertext it was working on, or None.
    """

    code = "E108"

    def __init__(
        self, what: str, *, signal: int | None = None, client: int | None = None, do: str | None = None
    ) -> None:
        super().__init__(what, found=None if signal is None else f"signal {signal}", expected="an answer", do=do)
        self.signal = signal
        self.client = client
