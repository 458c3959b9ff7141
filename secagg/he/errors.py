"""What can be wrong with bytes of a peer, and with the order of calls: one class each."""

from secagg.errors import SecAggError


class CiphertextError(SecAggError):
    """A ciphertext or public key that is not exactly what these parameters allow: its sender's fault."""

    code = "E105"


class OpeningError(SecAggError):
    """A step that the decryptor refuses: a second opening, a summand given twice, a sum of too few."""

    code = "E106"
