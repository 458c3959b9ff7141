"""What must happen sometimes: a campaign in which one of these stays at zero has not tested what it says it tests."""

from collections import Counter
from typing import Final

from protocol.drops import DropReason

PHASES: Final = ("ADVERTISE_KEYS", "SHARE_KEYS", "MASKED_INPUT", "CONSISTENCY_CHECK", "UNMASKING")
MESSAGES: Final = ("AdvertiseKeys", "ShareKeys", "MaskedInput", "ConsistencyCheck", "UnmaskingShares")

# Reasons that no schedule can bring about, and why.
UNREACHABLE: Final = {
    DropReason.NOT_INVITED: "the whole roster is invited, and the shell lets nobody else in",
    DropReason.NOT_ADMITTED: "who misses a phase is dropped as TIMED_OUT when it is closed",
    DropReason.UPLOAD_NOT_ACCEPTED: "the shell takes no body without an accepted header",
    DropReason.LEDGER_BEHIND: "takes more rounds than one message holds rows",
}

FAULTS: Final = (
    *(f"{fault}@{phase}" for fault in ("CLIENT_CRASH", "SERVER_CRASH", "EARLY_CLOSE", "STALL") for phase in PHASES),
    *(f"{fault}@{name}" for fault in ("LOST_REQUEST", "LOST_ANSWER", "DUPLICATE", "SABOTAGE") for name in MESSAGES),
    *(f"SPLIT@{phase}" for phase in PHASES[:4]),
    *(f"FORGE@{name}" for name in ("ADVERTISE_KEYS", "KeyList", "PeerShares", "SurvivorNotice", "Certificate")),
    *(f"REPLAY@{name}" for name in ("Announcement", "KeyList", "PeerShares", "SurvivorNotice", "Certificate")),
    "CLIENT_CRASH@IDLE",
    "CUT_UPLOAD",
    "EARLY_CLOSE@upload",
    "FORK@ledger",
    "LATE_TRAINING",
    "LOG_DAMAGED",
    "REPLAY@again",
    "REPLAY@aborted",
    "REWIND",
    "REWIND@rows",
    "SABOTAGE@secret",
    "upload with another digest",
)

ENDS: Final = (
    "released",
    "released in the end",
    "resumed",
    "resupply",
    "kept update",
    "lies retry",
    "lies unmasked",
    "stale request",
    *(f"closed {phase}" for phase in PHASES),
    *(f"drop {reason.name}" for reason in DropReason if reason not in UNREACHABLE),
)

ABORTS: Final = (
    "abort n clients left, n required",
    "abort this server was behind its own release ledger: n signed rows adopted",
    "abort client n dealt shares that do not open",
    "abort client n dealt shares of another seed than it committed to",
    "abort client n dealt shares of another key than it advertised",
    "abort client n dealt shares of no 32-byte secret: a share is not a field element",
    "abort client n dealt shares of no 32-byte secret: the shares do not meet in a 32-byte secret",
    "abort shares of client n: too few",
    "abort a client has n of n required neighbours left",
    "abort a zero word of the unmasked sum is not zero: some mask or masked input was wrong",
)

REFUSALS: Final = (
    "refused U1 is too small",
    "refused U2 is too small",
    "refused U3 is too small",
    "refused a key advertisement is not signed by its client",
    "refused a member of U2 has too few neighbours in U3",
    "refused a share's path has the wrong length",
    "refused a signature of the certificate is not on the set that we signed",
    "refused announced cohort is not the whole roster, or not num_clients",
    "refused announced manifest differs from the signed manifest",
    "refused announced roster differs from the signed roster",
    "refused announced round lies outside 1..rounds of the manifest",
    "refused our own key advertisement is missing or changed",
    "refused relayed shares are not signed by their dealer",
    "refused shares of other dealers than our neighbours in U2",
    "refused the bitmap of U1 is malformed or leaves us out",
    "refused the bitmap of U2 is malformed or leaves us out",
    "refused the bitmap of U3 is malformed or leaves us out",
    "refused the certificate's signers are not ascending members of U3",
    "refused keys of others than us and our neighbours",
    "refused the list of keys is not all of U1 without paths",
    "refused the listed keys are not those of ascending members of U1",
    "refused the listed keys do not lead to one root",
    "refused the release-ledger row is no signed extension of the ledger",
    "refused keys of others than us and our neighbours",
    "refused the list of keys is not all of U1 without paths",
    "refused the listed keys are not those of ascending members of U1",
    "refused the listed keys do not lead to one root",
    "refused the release-ledger row is not that of this attempt and this U3",
    "refused the server's release ledger is no extension of the one this client signed",
    "refused this attempt, or a later one, was already joined: attempts of a task only increase",
    "refused this round is spent: its update was already released once",
    "refused too few shares opened",
    "refused too few signatures on U3",
    "refused two clients advertise the same masking_pk",
    "refused unexpected message",
)

SOMETIMES: Final = (*FAULTS, *ENDS, *ABORTS, *REFUSALS)


def never(counters: Counter[str]) -> list[str]:
    """What has not happened once."""
    return [name for name in SOMETIMES if not counters[name]]
