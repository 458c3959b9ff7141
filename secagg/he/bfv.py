"""BFV by TenSEAL behind `AdditiveScheme`: the only module that loads the native library. SPEC 3.8.

The library makes keys, encrypts and decrypts. It never reads a byte that a peer framed: of a peer's public key it gets
the checked content in our frame, inside a context that was built here from parameters; ciphertexts of peers are added
as numbers, by NumPy, and only the sum is given to the library. Its randomness is its own (SEAL seeds Blake2xb from the
operating system); it takes no generator as an argument.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import NoReturn

import numpy as np
import tenseal

from secagg.encoding import Words
from secagg.errors import ParameterError
from secagg.he.context_frame import public_key_of, with_public_key
from secagg.he.errors import OpeningError
from secagg.he.guard import check_ciphertext, check_public_key, frame_ciphertext
from secagg.he.limbs import recombine, split
from secagg.he.scheme import DEGREE, LIBRARY, MAX_BLOCKS, BfvParams


def check_version(found: str) -> None:
    """The guard compares bytes with the formats of one version. Raises ParameterError for any other."""
    if f"tenseal {found}" != LIBRARY:
        raise ParameterError("version of the HE library", found=found, expected=LIBRARY, do="install that one")


check_version(tenseal.__version__)


class BfvEncryptor:
    """Encrypts words under a peer's public key."""

    def __init__(self, params: BfvParams, public_key: bytes) -> None:
        sealed = check_public_key(public_key, params)
        self._params = params
        self._context = tenseal.context_from(with_public_key(_template(params), sealed), n_threads=1)

    def encrypt(self, words: Words) -> Iterator[bytes]:
        """One ciphertext per block of words, in order; the last block is filled up with zeros.

        Raises:
            EncodingError: anything but a 1-D uint64 array, before the first block.
        """
        split(words[:0], self._params.limb_bits)
        return self._blocks(words)

    def _blocks(self, words: Words) -> Iterator[bytes]:
        step = self._params.words_per_block
        for start in range(0, len(words), step):
            limbs = split(words[start : start + step], self._params.limb_bits)
            filled = np.zeros(DEGREE, np.int64)
            filled[: len(limbs)] = limbs
            yield tenseal.bfv_vector(self._context, filled.tolist()).serialize()

    def __repr__(self) -> str:
        return f"<BfvEncryptor {self._params.clients} clients, {self._params.limb_bits}-bit limbs>"


class BfvOpening:
    """A fresh key pair and one running sum, opened once. The secret key lives in this object and nowhere else.

    Args:
        words: Length of each client's vector.
        clients: Whose vectors are summed: distinct, 2 to `params.clients` of them.

    Raises:
        ParameterError: no words, more than `MAX_BLOCKS` blocks, or another number of clients.
    """

    def __init__(self, params: BfvParams, words: int, clients: Sequence[int]) -> None:
        if not 1 <= params.blocks_for(words) <= MAX_BLOCKS:
            raise ParameterError("blocks of a vector", found=params.blocks_for(words), expected=f"1 to {MAX_BLOCKS}")
        if len(set(clients)) != len(clients) or not 2 <= len(clients) <= params.clients:
            raise ParameterError("clients of a sum", found=len(clients), expected=f"2 to {params.clients}, distinct")
        self._params = params
        self._words = words
        self._next = dict.fromkeys(clients, 0)
        self._sums = np.zeros((params.blocks_for(words), 2, DEGREE), np.uint64)
        self._context: tenseal.Context | None = _new_context(params)
        self._public_key = public_key_of(_public_part(self._context))

    @property
    def public_key(self) -> bytes:
        """What clients encrypt with. There is no way to get at the secret key."""
        return self._public_key

    def expect(self, clients: Sequence[int]) -> None:
        """The sum is over exactly these, some or all of the clients that the key was made for. Before the first `add`.

        Raises:
            OpeningError: after the first block or the opening, a stranger, or fewer than two.
        """
        strangers = set(clients) - set(self._next)
        if self._context is None or any(self._next.values()) or strangers or len(set(clients)) != len(clients):
            raise OpeningError("a set that cannot be summed", expected="distinct clients of this key, before any block")
        if len(clients) < 2:
            raise OpeningError("clients of a sum", found=len(clients), expected="at least 2")
        self._next = dict.fromkeys(clients, 0)

    def add(self, client: int, block: int, ciphertext: bytes) -> None:
        """Add block number `block` of one client; each client's blocks come in order, once.

        Raises:
            OpeningError: after the opening, for a stranger, and for a block given twice or out of order.
            CiphertextError: what is no ciphertext of these parameters. The sum is unchanged, the block still awaited.
        """
        if self._context is None:
            raise OpeningError("this sum was opened already", do="a further attempt needs fresh keys")
        awaited = self._next.get(client)
        if awaited is None:
            raise OpeningError("a ciphertext of a client outside the set", found=f"client {client}")
        if block != awaited or block >= len(self._sums):
            expected = f"block {awaited}" if awaited < len(self._sums) else "no further block"
            raise OpeningError("a block given twice or out of order", found=f"block {block}", expected=expected)
        total, q = self._sums[block], np.uint64(self._params.modulus)
        total += check_ciphertext(ciphertext, self._params)
        np.minimum(total, total - q, out=total)  # below q, total - q wraps to something larger
        self._next[client] = block + 1

    def open_(self) -> Words:
        """The sum modulo 2^64 of all clients' words. The key is forgotten, whatever comes of it.

        Raises:
            OpeningError: a second opening, or a client whose blocks are not all there (the sum stays open).
            DisagreementError: what comes out is no sum of limbs.
        """
        if self._context is None:
            raise OpeningError("this sum was opened already", expected="one opening", do="make fresh keys")
        short = [client for client, done in self._next.items() if done < len(self._sums)]
        if short:
            raise OpeningError("ciphertexts are missing", found=f"{len(short)} clients incomplete", expected="none")
        context, self._context = self._context, None
        out = np.empty(len(self._sums) * self._params.words_per_block, np.uint64)
        used = self._params.words_per_block * self._params.limbs_per_word
        for i, total in enumerate(self._sums):
            framed = frame_ciphertext(total, self._params)
            limbs = np.array(tenseal.bfv_vector_from(context, framed).decrypt(), np.int64)
            start = i * self._params.words_per_block
            out[start : start + self._params.words_per_block] = recombine(limbs[:used], self._params)
        return out[: self._words]

    def __repr__(self) -> str:
        state = "closed" if self._context is None else "open"
        return f"<BfvOpening {state}, {len(self._next)} clients, {self._words} words>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("an opening holds a secret key and is never serialised")

    def __copy__(self) -> NoReturn:
        raise TypeError("an opening holds a secret key and is never copied")

    def __deepcopy__(self, memo: object) -> NoReturn:
        raise TypeError("an opening holds a secret key and is never copied")


class Bfv:
    """`AdditiveScheme` by BFV."""

    def encryptor(self, params: BfvParams, public_key: bytes) -> BfvEncryptor:
        """Raises CiphertextError if the peer's `public_key` is not what `params` allow."""
        return BfvEncryptor(params, public_key)

    def opening(self, params: BfvParams, words: int, clients: Sequence[int]) -> BfvOpening:
        """Fresh keys for the sum of exactly these clients' vectors of `words` words."""
        return BfvOpening(params, words, clients)


def _new_context(params: BfvParams) -> tenseal.Context:
    """Fresh keys for these parameters."""
    sizes = [params.coefficient_bits] * 2
    kind = tenseal.SCHEME_TYPE.BFV
    return tenseal.context(kind, DEGREE, plain_modulus=params.plain_modulus, coeff_mod_bit_sizes=sizes, n_threads=1)


@functools.lru_cache(maxsize=4)
def _template(params: BfvParams) -> bytes:
    """A context of our own, of which only the parameters count: a peer's checked key takes the place of its key."""
    return _public_part(_new_context(params))


def _public_part(context: tenseal.Context) -> bytes:
    """Parameters and public key, and nothing else."""
    return bytes(
        context.serialize(save_public_key=True, save_secret_key=False, save_galois_keys=False, save_relin_keys=False)
    )
