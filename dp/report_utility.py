"""Group 12 of the accounting report: what the model is worth, against what, and for which hospital.

Every figure is an exact fraction of integer counts, written with four decimals. AUC is the share of (record of the
class, record of another class) pairs in which the former has the higher score, ties half (Mann and Whitney 1947);
over several classes the plain mean over the classes that occur.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import median_low
from typing import Any

from dp.report_facts import ALONE, METHODS, NOT_TRAINED_IN_STEPS
from dp.report_figures import NOT_MEASURED, Derived, Group, ratio

Result = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Score:
    """Figures of one result, or means over several."""

    accuracy: Fraction
    macro_f1: Fraction
    auc: Fraction | None


def score(result: Result) -> Score:
    """From the counts of one result."""
    confusion = result["confusion"]
    right, total = sum(row[i] for i, row in enumerate(confusion)), sum(map(sum, confusion))
    wins = result["twice_wins"]
    return Score(
        Fraction(right, max(total, 1)),
        macro_f1(confusion),
        None if wins is None else auc(wins, [sum(row) for row in confusion]),
    )


def macro_f1(confusion: Sequence[Sequence[int]]) -> Fraction:
    """Mean of the classes' F1 (2·tp / (true + predicted)); a class that is neither true nor predicted counts 0."""
    columns = [sum(column) for column in zip(*confusion, strict=True)]
    scores = [Fraction(2 * row[i], max(sum(row) + columns[i], 1)) for i, row in enumerate(confusion)]
    return sum(scores, Fraction(0)) / max(len(scores), 1)


def auc(twice_wins: Sequence[int], truth: Sequence[int]) -> Fraction | None:
    """Mean over the classes with both kinds of records; None if there is none."""
    total = sum(truth)
    shares = [
        Fraction(wins, 2 * own * (total - own)) for wins, own in zip(twice_wins, truth, strict=True) if 0 < own < total
    ]
    return sum(shares, Fraction(0)) / len(shares) if shares else None


def mean(scores: Sequence[Score]) -> Score:
    """Figure by figure; no AUC unless all have one."""
    count = len(scores)
    aucs = [s.auc for s in scores if s.auc is not None]
    return Score(
        sum((s.accuracy for s in scores), Fraction(0)) / count,
        sum((s.macro_f1 for s in scores), Fraction(0)) / count,
        sum(aucs, Fraction(0)) / count if len(aucs) == count else None,
    )


def utility(d: Derived) -> Group:
    """The group."""
    results = d.facts["utility"]
    trained = {_samples(d, r) for r in results if r["method"] not in NOT_TRAINED_IN_STEPS}
    hospitals = [_hospital(d, k) for k in sorted(d.names)] if results else []
    return {
        "status": "measured" if results else NOT_MEASURED,
        "labels": list(d.training["labels"]),
        "same_number_of_samples_seen": len(trained) <= 1,
        "methods": [_method(d, r) for r in results],
        "summary": _summary(results),
        "federated_dp_against": _against(results),
        "per_hospital": hospitals,
        "fairness": _fairness(d, results),
        "meaning": "accuracy at the threshold that the run chose, AUC over all thresholds; no result is an assurance "
        "for another hospital",
    }


def _samples(d: Derived, r: Result) -> int:
    """Expected records per client; under R2 the public divisor is that of all clients together."""
    sharing = d.aggregation["num_clients"] if d.privacy["protocol"] == "R2" else 1
    return int(r["steps_per_client"] * d.training["expected_batch"] // sharing)


def _method(d: Derived, r: Result) -> Group:
    figures, total = score(r), sum(map(sum, r["confusion"]))
    return {
        "method": r["method"],
        "client_id": r["client_id"],
        "name": "" if r["client_id"] is None else d.names[r["client_id"]],
        "test_client_id": r["test_client_id"],
        "seed": r["seed"],
        "samples_per_client": _samples(d, r),
        "test_records": total,
        "correct": sum(row[i] for i, row in enumerate(r["confusion"])),
        "twice_wins": r["twice_wins"],
        **_written(figures),
    }


def _written(s: Score) -> Group:
    return {
        "accuracy": ratio(s.accuracy),
        "macro_f1": ratio(s.macro_f1),
        "auc": NOT_MEASURED if s.auc is None else ratio(s.auc),
    }


def _summary(results: Sequence[Result]) -> list[Group]:
    """Each method on the common test records, over seeds (and over hospitals, for those alone)."""
    rows = []
    for method, meaning in METHODS.items():
        scores = [score(r) for r in results if r["method"] == method and r["test_client_id"] is None]
        if scores:
            accuracies = [s.accuracy for s in scores]
            rows.append(
                {
                    "method": method,
                    "meaning": meaning,
                    "runs": len(scores),
                    **_written(mean(scores)),
                    "lowest_accuracy": ratio(min(accuracies)),
                    "median_accuracy": ratio(median_low(accuracies)),
                    "highest_accuracy": ratio(max(accuracies)),
                }
            )
    return rows


def _against(results: Sequence[Result]) -> list[Group]:
    """Differences of means on the common test records; positive: this federation is better."""

    def of(method: str) -> Score | None:
        scores = [score(r) for r in results if r["method"] == method and r["test_client_id"] is None]
        return mean(scores) if scores else None

    ours, rows = of("federated-dp"), []
    for method in METHODS:
        other = of(method)
        if ours is None or other is None or method == "federated-dp":
            continue
        both = ours.auc is not None and other.auc is not None
        rows.append(
            {
                "method": method,
                "accuracy_difference": ratio(ours.accuracy - other.accuracy),
                "auc_difference": ratio((ours.auc or Fraction(0)) - (other.auc or Fraction(0)))
                if both
                else NOT_MEASURED,
            }
        )
    return rows


def _hospital(d: Derived, client: int) -> Group:
    """One hospital: on its own test records where there are some, on the common ones otherwise."""
    results = d.facts["utility"]
    own = any(r["test_client_id"] == client for r in results)
    mine = [
        r
        for r in results
        if r["test_client_id"] == (client if own else None) and (r["method"] not in ALONE or r["client_id"] == client)
    ]
    figures = []
    for method in METHODS:
        scores = [score(r) for r in mine if r["method"] == method]
        if scores:
            figures.append({"method": method, **_written(mean(scores))})
    return {
        "client_id": client,
        "name": d.names[client],
        "tested_on": "its own test records" if own else "the common test records",
        "test_records": sum(map(sum, mine[0]["confusion"])) if mine else 0,
        "figures": figures,
    }


def _fairness(d: Derived, results: Sequence[Result]) -> Group:
    """The gap between the best and the worst served hospital, per method that was tested at every hospital."""
    rows = []
    for method in METHODS:
        per: dict[int, Score] = {}
        for k in d.names:
            scores = [
                score(r)
                for r in results
                if r["method"] == method and r["test_client_id"] == k and (method not in ALONE or r["client_id"] == k)
            ]
            if scores:
                per[k] = mean(scores)
        if len(per) == len(d.names):
            rows.append({"method": method, **_gap(per, lambda s: s.accuracy)})
    return {
        "status": "measured: every hospital's own test records"
        if rows
        else f"{NOT_MEASURED}: there are no test records of each hospital",
        "rows": rows,
        "groups_of_patients": f"{NOT_MEASURED}: records carry no protected attribute in this format",
    }


def _gap(per: Mapping[int, Score], of: Callable[[Score], Fraction]) -> Group:
    lowest, highest = min(per, key=lambda k: (of(per[k]), k)), max(per, key=lambda k: (of(per[k]), -k))
    return {
        "worst_client_id": lowest,
        "worst_accuracy": ratio(of(per[lowest])),
        "best_client_id": highest,
        "best_accuracy": ratio(of(per[highest])),
        "gap": ratio(of(per[highest]) - of(per[lowest])),
    }
