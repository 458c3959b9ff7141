"""Words for the keys of a report, shared by the page and the Markdown: an ε never stands without its δ and unit."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from dp.report_schema_groups import GROUPS

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
    "epsilon_per_record": "ε of one record, add/remove, at the same δ",
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
    "evaluation_covered": "ε covers the evaluation, or it touches nobody of the unit",
    "tuning_cost": "cost of other tasks, runs and tuning",
    "num_clients": "clients invited",
    "max_corrupt": "clients that an adversary may control",
    "min_cohort": "smallest sum that is released",
    "max_dropouts": "dropouts survived",
    "max_records": "upper bound on all records",
    "vector_length": "trained values",
    "seq": "row",
    "sees": "shows",
    "blind": "does not show",
}
_HIDDEN = ("number", "id", "title")
EPSILONS = frozenset(
    {
        *("epsilon", "continuous", "rdp", "prv", "closed_form", "second_grid"),
        *("epsilon_of_this_task_alone", "epsilon_of_everything"),
    }
)


def _orders(value: Any) -> Iterator[tuple[frozenset[str], list[str]]]:
    """The keys of every object of the schema, in the order in which they were written down."""
    if isinstance(value, Mapping):
        if isinstance(value.get("properties"), Mapping):
            keys = [key for key in value["properties"] if key not in _HIDDEN]
            yield frozenset(keys), keys
        for item in value.values():
            yield from _orders(item)
    elif isinstance(value, list):
        for item in value:
            yield from _orders(item)


# Canonical JSON sorts keys by name; people read them in the order of the schema.
_ORDERS = dict(_orders([{"properties": fields} for _, fields in GROUPS.values()]))


def ordered(keys: Iterable[str]) -> list[str]:
    """Keys as people read them; housekeeping keys left out."""
    wanted = [key for key in keys if key not in _HIDDEN]
    return _ORDERS.get(frozenset(wanted)) or sorted(wanted)


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
