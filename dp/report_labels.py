"""Words for the keys of a report, shared by the page and the Markdown: an ε never stands without its δ and unit."""

from collections.abc import Iterable, Mapping
from typing import Any

LABELS = {
    "epsilon": "ε",
    "continuous": "ε, continuous noise (not certified)",
    "rdp": "ε by RDP",
    "prv": "ε by PRV",
    "closed_form": "ε, closed form",
    "second_grid": "ε, second grid",
    "epsilon_of_this_task_alone": "ε of this task alone",
    "epsilon_of_everything": "ε of everything",
    "delta": "δ",
    "macro_f1": "macro-F1",
    "auc": "AUC",
    "auc_difference": "difference in AUC",
    "accuracy_difference": "difference in accuracy",
    "tpr_at_0_1_percent_fpr": "found at .1 % false accusations",
    "tpr_at_1_percent_fpr": "found at 1 % false accusations",
    "tpr_at_10_percent_fpr": "found at 10 % false accusations",
    "ctx": "context digest",
    "client_id": "client",
    "test_client_id": "tested at client",
    "twice_wins": "twice the ordered pairs, per class",
    "federated_dp_against": "the federation against each comparator",
    "name": "name",
    "torch_generator": "torch's generator",
    "epsilon_budget": "budget",
}
# Canonical JSON sorts keys by name; people want to know first what a row is about.
_FIRST = (
    *("round", "attempt", "client_id", "name", "role", "framework", "reference", "topic", "adversary", "against"),
    *("quantity", "method", "meaning", "task", "status", "seq", "key", "asks", "passed", "found", "bound", "epsilon"),
)
_HIDDEN = ("number", "id", "title")
EPSILONS = frozenset(
    {
        *("epsilon", "continuous", "rdp", "prv", "closed_form", "second_grid"),
        *("epsilon_of_this_task_alone", "epsilon_of_everything"),
    }
)


def ordered(keys: Iterable[str]) -> list[str]:
    """Keys as people read them: what a row is about first; housekeeping keys left out."""
    wanted = [key for key in keys if key not in _HIDDEN]
    return sorted(wanted, key=lambda key: (_FIRST.index(key) if key in _FIRST else len(_FIRST), key))


def label(key: str, qualifier: str) -> str:
    """The words for a key; an ε gets what must stand beside it."""
    text = LABELS.get(key, key.replace("_", " "))
    return f"{text} ({qualifier})" if key in EPSILONS else text


def plain_cell(value: Any, qualifier: str) -> str:
    """Any JSON value on one line."""
    if value is None or value == "" or value == [] or value == {}:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return "; ".join(f"{label(str(key), qualifier)}: {plain_cell(value[key], qualifier)}" for key in ordered(value))
    if isinstance(value, list):
        return "; ".join(plain_cell(item, qualifier) for item in value)
    return str(value)
