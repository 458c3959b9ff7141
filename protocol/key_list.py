"""What a client makes of the list of U1: who is in it, whose keys count, and who its neighbours are. SPEC 6.3.

On the complete graph the list holds everybody and the client recomputes the root from it. On the ring it holds the
client and its neighbours, each with a path to the one root; whom the client has to do with follows from that root, so
the server cannot choose it. Entries of others are not seen: whoever finds its own entry changed never accepts the root
(docs/proofs/ring.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from protocol.client_states import Attempt
from protocol.errors import RemoteProtocolError
from protocol.messages import AdvertiseKeys, KeyEntry, KeyList, advertise_leaf, root_advertised
from secagg import key_agreement
from secagg.errors import AuthenticationError
from secagg.graph import Members, NeighborGraph, index_in, neighbor_graph
from secagg.transcript import from_bitmap, merkle_climb, merkle_root
from secagg.types import ClientId


@dataclass(frozen=True, slots=True)
class Neighborhood:
    """U1 as one client sees it."""

    advertised: dict[ClientId, AdvertiseKeys]  # its own and its neighbours'
    graph: NeighborGraph
    root_u1: bytes


def reject(what: str, *, found: object = None, expected: object = None) -> NoReturn:
    """The peer's fault: this attempt is over."""
    raise RemoteProtocolError(
        what,
        found=found,
        expected=expected,
        do="the attempt was aborted and its secrets erased; ask the server's operator",
    )


def check_key_list(attempt: Attempt, mine: AdvertiseKeys, message: KeyList, *key: bytes) -> Neighborhood:
    """Every check of SPEC 6.3 but that of the release ledger; `key`: digest of the decryptor's key, where there is one.

    Raises RemoteProtocolError.
    """
    setup, params = attempt.setup, attempt.setup.params
    members = from_bitmap(message.advertised, attempt.announcement.cohort)
    if members is None or setup.me not in members:
        reject("the bitmap of U1 is malformed or leaves us out")
    u1 = tuple(ClientId(m) for m in members)
    if len(u1) < params.required_advertised:
        reject("U1 is too small", found=len(u1), expected=f"at least {params.required_advertised}")
    listed = tuple(entry.client for entry in message.entries)
    if list(listed) != sorted(set(listed)) or not set(listed) <= set(u1):
        reject("the listed keys are not those of ascending members of U1", found=listed)
    advertised = {entry.client: entry.keys for entry in message.entries}
    if advertised.get(setup.me) != mine:
        reject("our own key advertisement is missing or changed")
    tree_root = _tree_root(attempt, message.entries, u1)
    root_u1 = root_advertised(attempt.ctx, message.advertised, tree_root, *key)
    graph = neighbor_graph(params, u1, root_u1)
    expected = tuple(sorted((setup.me, *graph.neighbors(setup.me))))
    if listed != expected:
        reject("keys of others than us and our neighbours", found=listed, expected=expected)
    _check_keys(attempt, advertised)
    return Neighborhood(advertised, graph, root_u1)


def _tree_root(attempt: Attempt, entries: Sequence[KeyEntry], u1: Members) -> bytes:
    """Root of the Merkle tree over U1: recomputed from all leaves, or the one that every path leads to."""
    leaves = [advertise_leaf(attempt.ctx, entry.client, entry.keys) for entry in entries]
    if attempt.setup.params.graph == "complete":
        if len(entries) != len(u1) or any(entry.path for entry in entries):
            reject("the list of keys is not all of U1 without paths", found=len(entries), expected=len(u1))
        return merkle_root(leaves)
    roots = {
        merkle_climb(leaf, index_in(u1, entry.client), len(u1), entry.path)
        for leaf, entry in zip(leaves, entries, strict=True)
    }
    root = roots.pop() if len(roots) == 1 else None
    if root is None:
        reject("the listed keys do not lead to one root")
    return root


def _check_keys(attempt: Attempt, advertised: dict[ClientId, AdvertiseKeys]) -> None:
    for name in ("encryption_pk", "masking_pk", "commitment"):
        if len({getattr(keys, name) for keys in advertised.values()}) != len(advertised):
            reject(f"two clients advertise the same {name}")
    for client, keys in advertised.items():  # one key has one encoding, or the check for duplicates is void
        if not (key_agreement.is_canonical(keys.encryption_pk) and key_agreement.is_canonical(keys.masking_pk)):
            reject("an advertised key is not in canonical form", found=f"client {client}")
    for client, keys in advertised.items():
        try:
            attempt.setup.roster.verify_key(client).verify(keys.signature, keys.body(attempt.ctx, client))
        except AuthenticationError:
            reject("a key advertisement is not signed by its client", found=f"client {client}")
