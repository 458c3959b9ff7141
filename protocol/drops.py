"""Why a server leaves a client out of an attempt: an enum, so that metrics, tables and tests speak in enums."""

import enum


class DropReason(enum.Enum):
    """One reason per check of SPEC 7. Nothing a client sends makes the server raise."""

    NOT_INVITED = "not a member of the cohort"
    WRONG_PHASE = "message for another phase"
    NOT_ADMITTED = "left out in an earlier phase"
    CHANGED_MESSAGE = "a second, different message for the same phase"
    BAD_SIGNATURE = "signature does not verify"
    BAD_KEYS = "malformed or duplicate public keys"
    CONVICTED = "dealt shares that do not open, in an earlier attempt"
    LEDGER_BEHIND = "the client missed more release-ledger rows than one message holds"
    LEDGER_MISMATCH = "the client signed release-ledger rows that this server does not have"
    BAD_SHARE_LIST = "shares for other holders than required"
    BAD_HEADER = "upload header does not fit the manifest"
    UPLOAD_NOT_ACCEPTED = "upload without an accepted header"
    BAD_SHARES = "unmasking shares that are not the dealt ones"
    WITHDREW = "the client withdrew"
    TIMED_OUT = "no answer before the phase was closed"
