"""One HE key on every client is one key too many: what a client and the server open together, in the common design and
in ours. Real ciphertexts.
"""

from dataclasses import replace

import numpy as np
import pytest
from simulator import Federation, Simulation, encrypted, make_manifest, random_values

from protocol.effects import Released
from protocol.encrypted import BlockReader
from secagg.encoding import Words
from secagg.errors import ReconstructionError
from secagg.he import bfv
from secagg.he.errors import DisagreementError
from secagg.he.guard import check_ciphertext, frame_ciphertext
from secagg.he.limbs import recombine, split
from secagg.he.scheme import DEGREE, BfvParams
from secagg.masking import frame, unframe
from secagg.params import SecAggParams
from secagg.types import ClientId

CORRUPT = ClientId(5)
OTHERS = tuple(ClientId(i) for i in range(1, 5))


def decrypted(context: object, block: bytes, params: BfvParams) -> Words:
    """The words of one block, by whoever holds the secret key in `context`."""
    framed = frame_ciphertext(check_ciphertext(block, params), params)
    limbs = np.array(bfv.tenseal.bfv_vector_from(context, framed).decrypt(), np.int64)
    return recombine(limbs[: params.words_per_block * params.limbs_per_word], params)


def consortium() -> tuple[Federation, SecAggParams]:
    federation = replace(Federation.create(make_manifest(5, 1, 1, 40, **encrypted("dual"))), scheme=bfv.Bfv())
    return federation, federation.manifest.secagg_params()


def test_the_common_design_one_client_and_the_server_open_everybodys_update() -> None:
    """Every client holds the same key pair, encrypts its plain update, and decrypts the sum that the server returns."""
    federation, params = consortium()
    values = random_values(federation.manifest, range(1, 6))
    shared = bfv._new_context(params.bfv)  # "distributed to the clients", as its users are told to do
    server: dict[ClientId, bytes] = {}
    for client, mine in values.items():
        filled = np.zeros(DEGREE, np.int64)
        limbs = split(frame(mine, params), params.limb_bits)
        filled[: len(limbs)] = limbs
        server[client] = bfv.tenseal.bfv_vector(shared, filled.tolist()).serialize()
    for victim in OTHERS:  # the server hands the colluding client one ciphertext instead of the sum
        words = decrypted(shared, server[victim], params.bfv)[: params.total_words]
        assert np.array_equal(unframe(words, 1, params), values[victim])


def played() -> tuple[Simulation, object, dict[ClientId, bytes]]:
    """A dual attempt, the decryptor's secret context, and the first block of every client, as the server has it."""
    federation, params = consortium()
    run = Simulation(federation, random_values(federation.manifest, range(1, 6)))
    kept: list[object] = []
    forward = run.forward
    run.forward = lambda client: (kept.append(run.sum._context), forward(client))[1]  # type: ignore[method-assign, union-attr]
    assert isinstance(run.run(), Released)
    blocks = {c: BlockReader(params.num_blocks).feed(u.data)[0] for c, u in run.ciphertexts.items()}
    return run, kept[0], blocks


def test_with_dual_the_same_two_learn_the_sum_and_nothing_else() -> None:
    run, _, blocks = played()
    params = run.server.params
    outcome = run.outcome
    assert isinstance(outcome, Released)
    assert np.array_equal(outcome.total, sum(run.values.values()))  # that is what they learn
    session = run.clients[CORRUPT]
    assert not [part for part in vars(session).values() if "Context" in type(part).__name__]
    own = bfv._new_context(params.bfv)  # the only secret keys that they can have are ones of their own
    for victim in OTHERS:
        with pytest.raises(DisagreementError):
            decrypted(own, blocks[victim], params.bfv)


def test_with_dual_even_the_decryptors_key_shows_masked_words_only() -> None:
    """Server, client and decryptor together: what a server of the masked protocol sees."""
    run, secret, blocks = played()
    params = run.server.params
    for victim in OTHERS:
        words = decrypted(secret, blocks[victim], params.bfv)[: params.total_words]
        plain = frame(run.values[victim], params)
        assert not (words == plain).any()
        with pytest.raises(ReconstructionError):
            unframe(words, 1, params)
    # what `he` leaves out is exactly this lock
    federation = replace(Federation.create(make_manifest(5, 1, 1, 40, **encrypted("he"))), scheme=bfv.Bfv())
    naked = Simulation(federation, run.values)
    kept: list[object] = []
    forward = naked.forward
    naked.forward = lambda client: (kept.append(naked.sum._context), forward(client))[1]  # type: ignore[method-assign, union-attr]
    assert isinstance(naked.run(), Released)
    block = BlockReader(params.num_blocks).feed(naked.ciphertexts[OTHERS[0]].data)[0]
    words = decrypted(kept[0], block, params.bfv)[: params.total_words]
    assert np.array_equal(unframe(words, 1, params), run.values[OTHERS[0]])
