"""From the shares of phase 4 to the masks that the sum still carries. SPEC 7.6.

For each survivor its self seed is rebuilt, for each dropout its masking key; each is checked against what its owner
advertised. Shares that are themselves good but meet in a wrong secret are their dealer's fault.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from protocol.messages import AdvertiseKeys, UnmaskingShares, seed_commitment
from secagg import kdf, key_agreement, shamir
from secagg.errors import ReconstructionError
from secagg.graph import NeighborGraph
from secagg.masking import Mask, pairwise_sign
from secagg.types import ClientId, Secret


class DealerFault(ReconstructionError):
    """Good shares of a wrong secret."""

    def __init__(self, dealer: ClientId, what: str) -> None:
        super().__init__(f"client {dealer} {what}")
        self.dealer = dealer


@dataclass(frozen=True, slots=True)
class Unmasking:
    """The public facts of an attempt that phase 4 builds on."""

    ctx: bytes
    root_u2: bytes
    graph: NeighborGraph
    threshold: int
    advertised: Mapping[ClientId, AdvertiseKeys]
    survivors: frozenset[ClientId]  # U3

    def masks(self, shared: tuple[ClientId, ...], answers: Mapping[ClientId, UnmaskingShares]) -> tuple[Mask, ...]:
        """Every mask to add to the sum of U3's masked inputs, for U2 = `shared` and the answers of U5.

        Raises:
            DealerFault: A dealer shared another secret than it committed to.
            ReconstructionError: Too few shares of one client.
        """
        shares: dict[ClientId, dict[int, Secret]] = {dealer: {} for dealer in shared}
        for holder, answer in answers.items():
            for dealer, share in (*answer.self_shares, *answer.key_shares):
                shares[dealer][self.graph.point(dealer, holder)] = Secret(share)
        masks: list[Mask] = []
        for client in shared:
            secret = self._reconstruct(client, shares.pop(client))
            if client in self.survivors:
                masks.append(self._self_mask(client, secret))
            else:
                masks += self._pairwise_masks(client, secret)
            secret.wipe()
        return tuple(masks)

    def _reconstruct(self, dealer: ClientId, shares: dict[int, Secret]) -> Secret:
        if len(shares) < self.threshold:
            raise ReconstructionError(
                f"shares of client {dealer}: too few", found=len(shares), expected=f"at least {self.threshold}"
            )
        try:
            return shamir.reconstruct(shares, self.threshold)
        except ReconstructionError as error:  # every share is the one that its dealer signed the hash of
            raise DealerFault(dealer, f"dealt shares of no 32-byte secret: {error.what}") from None

    def _self_mask(self, client: ClientId, seed: Secret) -> Mask:
        if seed_commitment(self.ctx, client, seed) != self.advertised[client].commitment:
            raise DealerFault(client, "dealt shares of another seed than it committed to")
        return Mask(kdf.self_mask_key(seed, self.ctx, client), -1)

    def _pairwise_masks(self, dropped: ClientId, private: Secret) -> list[Mask]:
        if key_agreement.public_key(private) != self.advertised[dropped].masking_pk:
            raise DealerFault(dropped, "dealt shares of another key than it advertised")
        masks = []
        agreement = key_agreement.Agreement(private)
        for peer in self.graph.neighbors(dropped):
            if peer in self.survivors:
                agreed = agreement.agree(self.advertised[peer].masking_pk)
                seed = kdf.pairwise_seed(agreed, self.ctx, self.root_u2, dropped, peer)
                agreed.wipe()
                masks.append(Mask(seed, -pairwise_sign(peer, dropped)))
        return masks
