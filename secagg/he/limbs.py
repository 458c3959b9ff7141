"""Words to limbs and sums of limbs back to words modulo 2^64. Exact: integers only.

A word w is cut into limbs of `limb_bits` bits, the lowest first; limb i of word j is number ``j * limbs + i``. Sums of
limbs exceed the width of a limb; recombining them modulo 2^64 gives the sum of the words modulo 2^64 and forgets the
carries, which would tell about single summands.
"""

import numpy as np
from numpy.typing import NDArray

from secagg.encoding import Words
from secagg.errors import EncodingError
from secagg.he.errors import DisagreementError
from secagg.he.scheme import LIMBS_PER_WORD, BfvParams


def split(words: Words, limb_bits: int) -> NDArray[np.int64]:
    """Limbs of `words`: 1-D int64 in [0, 2^limb_bits), ``limbs_per_word`` times as many as words.

    Raises:
        EncodingError: anything but a 1-D uint64 array.
    """
    if words.dtype != np.uint64 or words.ndim != 1:
        raise EncodingError("words", found=f"{words.dtype}, {words.ndim}-D", expected="uint64, 1-D")
    limbs = np.empty((len(words), LIMBS_PER_WORD[limb_bits]), np.int64)
    mask = np.uint64((1 << limb_bits) - 1)
    for i in range(limbs.shape[1]):
        limbs[:, i] = (words >> np.uint64(i * limb_bits)) & mask
    return limbs.reshape(-1)


def recombine(sums: NDArray[np.int64], params: BfvParams) -> Words:
    """Words modulo 2^64 of summed limbs.

    Args:
        sums: 1-D, a multiple of ``limbs_per_word`` values, each congruent modulo t to a sum in [0, `largest_sum`].

    Raises:
        EncodingError: another length.
        DisagreementError: a value that is no sum of `params.clients` limbs. Says nothing about the value.
    """
    if sums.ndim != 1 or len(sums) % params.limbs_per_word:
        raise EncodingError("limbs", found=len(sums), expected=f"a multiple of {params.limbs_per_word}")
    reduced = np.mod(sums, params.plain_modulus)
    if len(reduced) and int(reduced.max()) > params.largest_sum:
        raise DisagreementError(
            "the opened value is no sum of limbs",
            do="abort: a summand was encrypted under another key, altered, or not an honest encryption",
        )
    limbs = reduced.astype(np.uint64).reshape(-1, params.limbs_per_word)
    words = np.zeros(len(limbs), np.uint64)
    for i in range(params.limbs_per_word):
        words += limbs[:, i] << np.uint64(i * params.limb_bits)
    return words
