"""The error tree of the privacy layer. Same shape as `secagg.errors`; `dp` imports nothing from it."""


class PrivacyError(Exception):
    """Base of all errors of `dp`. See `secagg.errors.SecAggError` for the meaning of the arguments."""

    code = "E200"

    def __init__(
        self,
        what: str,
        *,
        found: object = None,
        expected: object = None,
        do: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.found = found
        self.expected = expected
        self.do = do
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        parts = [self.what]
        if self.found is not None:
            parts.append(f"found {self.found}")
        if self.expected is not None:
            parts.append(f"expected {self.expected}")
        return "; ".join(parts)


class BudgetExceededError(PrivacyError):
    """The next release would spend more than the budget. Raised before anything is drawn or sent."""

    code = "E201"


class UnsupportedMechanismError(PrivacyError):
    """A mechanism for which this project has no proof."""

    code = "E202"


class LedgerError(PrivacyError):
    """The privacy ledger is damaged, rewound or locked. Nothing is released while it is in doubt."""

    code = "E203"


class AccountingError(PrivacyError):
    """Independent accountants disagree, or a guarantee cannot be computed. Nothing is released."""

    code = "E204"


class ReportError(PrivacyError):
    """An accounting report that does not hold what it says.

    E601 facts that contradict each other, E602 a file that cannot be read or is not what it should be, E603 figures or
    signatures that do not follow, E604 evidence attached by somebody else than the run's server.
    """

    code = "E601"


class AuditError(PrivacyError):
    """An audit that found a violation (E701), or that has nothing to audit (E702)."""

    code = "E701"
