"""ctx: the 32 bytes that every key, every signature and every associated data of an attempt depend on. SPEC 6.1."""

from protocol.manifest import Manifest
from protocol.messages import Announcement
from protocol.roster import Roster
from secagg.labels import COHORT, CTX
from secagg.params import SecAggParams
from secagg.transcript import digest, id_list

WIRE_VERSION = 1


def context(announcement: Announcement, params: SecAggParams) -> bytes:
    """Digest of version, manifest, round, attempt, model, roster, cohort, n, C and every parameter.

    Different models or split views give different masks, which do not cancel: the attempt fails, it does not leak.
    """
    return digest(
        CTX,
        WIRE_VERSION,
        announcement.manifest_digest,
        announcement.round,
        announcement.attempt,
        announcement.model_digest,
        announcement.roster_root,
        digest(COHORT, id_list(announcement.cohort)),
        params.num_clients,
        params.max_corrupt,
        params.digest(),
    )


def announcement_error(announcement: Announcement, roster: Roster, manifest: Manifest) -> str | None:
    """Why this announcement does not fit the signed documents, or None. Every client checks it."""
    ids = announcement.cohort
    if announcement.manifest_digest != manifest.digest():
        return "announced manifest differs from the signed manifest"
    if announcement.roster_root != roster.root():
        return "announced roster differs from the signed roster"
    # Everybody is invited, always: no cohort to choose, and no second one for a retry (SPEC 6.1).
    if ids != roster.ids or len(ids) != manifest.aggregation.num_clients:
        return "announced cohort is not the whole roster, or not num_clients"
    if not 1 <= announcement.round <= manifest.training.rounds:
        return "announced round lies outside 1..rounds of the manifest"
    return None
