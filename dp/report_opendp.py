"""An entry for the OpenDP Deployments Registry (tier 3) from a report, as YAML.

Field names, enumerations and required fields are the registry's (`deployments-schema.yaml` of its data repository).
What a report cannot know (purpose, region) is taken from the operator's statements, or said to be missing: an entry is
a draft for people to finish. The YAML holds mappings, lists, numbers and double-quoted strings only; a double-quoted
string of YAML 1.2 reads every JSON string.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

from dp.report_figures import order

Entry = dict[str, Any]
REQUIRED = ("url_slug", "status", "tier", "deployment")
REQUIRED_BASIC = (
    *("name", "data_curators", "description", "intended_use"),
    *("data_product_type", "data_product_region", "publication_date"),
)
_NOT_IN_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")  # JSON leaves these as they are
_PLAIN_KEY = re.compile(r"[a-z_]+")


def opendp_entry(report: Mapping[str, Any]) -> Entry:
    """The entry as a value; deterministic. Expects a verified report."""
    g = {group["id"]: group for group in report["groups"]}
    stated = {row["key"]: row["statement"] for row in g["governance"]["stated"]}
    identity, headline = g["identity"], g["guarantee"]["headline"]
    return {
        "url_slug": re.sub(r"[^a-z0-9]+", "-", f"{identity['consortium']}-{identity['task']}".lower()).strip("-"),
        "status": "Draft",
        "tier": 3,
        "deployment": {
            "basic": _basic(g, stated),
            "dp_variant": {
                "variant_name": "Approximate DP",
                "data_domain": identity["data"],
                "unprotected_quantities": _sentences(
                    [f"{row['quantity']} ({row['seen_by']})" for row in g["unprotected"]["public"]]
                    + [f"evaluation: {g['unprotected']['evaluation_people']}"]
                ),
            },
            "privacy_loss": {
                "privacy_unit": headline["unit"],
                "privacy_unit_details": f"Adjacency: {headline['adjacency']}. {g['unit']['meaning']}. At most "
                f"{g['unit']['records_per_person']} records per person; people in several silos: "
                f"{g['unit']['people_in_several_silos']} (declared). {g['unit']['if_wrong']}.",
                "privacy_parameters": _parameters(headline),
                "privacy_parameters_details": _parameter_details(g),
            },
            "deployment_model": _model(g),
            "accounting": {
                "post_processing": g["mechanism"]["after_the_noise"],
                "composition": f"{g['accounting']['accountant']}; {g['accounting']['rounding']}. "
                + _sentences(g["accounting"]["enforced"]),
            },
            "implementation": _implementation(g),
            "administrative": {
                "sources": f"Signed accounting report {report['schema']}, manifest {identity['manifest_digest']}; "
                f"recompute: {g['recompute']['command']}",
                "notes": f"{g['governance']['statement']} Not stated by the operator: "
                f"{', '.join(g['governance']['not_stated']) or 'nothing'}.",
                "registry_authors": [
                    stated["contact"] if "contact" not in g["governance"]["not_stated"] else identity["consortium"]
                ],
            },
        },
    }


def _basic(g: Mapping[str, Any], stated: Mapping[str, str]) -> Entry:
    identity, release = g["identity"], g["release"]
    return {
        "name": f"{identity['consortium']}: {identity['task']}",
        "data_curators": [member["name"] for member in identity["members"] if member["role"] != "server"],
        "intended_use": stated["purpose"],
        "data_product_type": "Machine learning model",
        "data_product_region": stated["region"],
        "description": f"{release['adapter_method']} adapter of {identity['base_model']} with "
        f"{release['vector_length']} trained values, from {release['released_rounds']} released rounds of federated "
        f"training with secure aggregation. {release['per_round']}.",
        "publication_date": identity["ended"][:10],
    }


def _parameters(headline: Mapping[str, Any]) -> Entry:
    delta = Decimal(headline["delta"])
    if order(headline["epsilon"]).is_infinite():  # no number may stand for "no useful guarantee"
        return {"delta": delta}
    return {"epsilon": Decimal(headline["epsilon"]), "delta": delta}


def _parameter_details(g: Mapping[str, Any]) -> str:
    rows = [
        f"{row['adversary']}: {'ε = ' if row['epsilon'][0].isdigit() else ''}{row['epsilon']}"
        for row in g["guarantee"]["per_adversary"]
    ]
    headline = g["guarantee"]["headline"]
    return f"{headline['sentence']}. By adversary, {headline['qualifier']}: {_sentences(rows)}"


def _model(g: Mapping[str, Any]) -> Entry:
    mechanism = g["mechanism"]
    rows = [
        f"{row['adversary']}, against {row['against']}: knows {row['knows']}" for row in g["guarantee"]["per_adversary"]
    ]
    return {
        "model_name": "Federated",
        "model_name_details": f"Protocol {mechanism['protocol']}. {mechanism['name']}. {g['guarantee']['why']}.",
        "actors": _sentences(rows),
        "release_type": "Many releases",
        "release_type_details": f"{g['release']['released_rounds']} released rounds; the budget ε = "
        f"{g['accounting']['budget']['epsilon']} at δ = {g['accounting']['budget']['delta']} holds per "
        f"{g['accounting']['budget']['per']} for the whole life of the data and is never reset.",
        "data_source_type": "Static",
        "data_source_type_details": "Records added later stay in the same ledger.",
        "access_type": "Non-interactive",
        "access_type_details": "Nobody queries the records; the trained adapter is the product.",
    }


def _implementation(g: Mapping[str, Any]) -> Entry:
    real, randomness = g["mechanism"]["real_units"], g["randomness"]
    unprotected = g["unprotected"]
    versions = ", ".join(f"{name} {version}" for name, version in randomness["versions"].items())
    return {
        "preprocessing_and_hyperparameter_tuning": f"{unprotected['tuning']}. {unprotected['evaluation_people']}.",
        "mechanisms": f"{g['mechanism']['name']}: clip norm {real['clip_norm']}, noise multiplier "
        f"{real['noise_multiplier']}, sampling probability {real['sampling_probability']}, "
        f"{g['mechanism']['local_steps_per_round']} steps per round. Randomness: {randomness['generator']}. Noise: "
        f"{randomness['noise']}. Floating point: {randomness['floating_point']}. Software: {versions}.",
        "justification": _sentences(
            [
                f"δ: {g['accounting']['delta']['justification']}",
                f"audit: {g['audit']['status']}",
                *g["accounting"]["assumed"],
            ]
        ),
    }


def _sentences(texts: Sequence[str]) -> str:
    return "; ".join(texts) + "."


def render_opendp(report: Mapping[str, Any]) -> str:
    """The entry as YAML."""
    return "\n".join(_yaml(opendp_entry(report), "")) + "\n"


def _yaml(value: Mapping[str, Any], indent: str) -> Iterator[str]:
    """Block mappings with plain lowercase keys; everything else on one line."""
    for key, item in value.items():
        if not _PLAIN_KEY.fullmatch(key):
            raise ValueError(f"no plain key: {key!r}")
        if isinstance(item, Mapping):
            yield f"{indent}{key}:"
            yield from _yaml(item, indent + "  ")
        elif isinstance(item, list):
            yield f"{indent}{key}:"
            yield from (f"{indent}  - {_scalar(entry)}" for entry in item)
        else:
            yield f"{indent}{key}: {_scalar(item)}"


def _scalar(value: str | int | Decimal) -> str:
    if isinstance(value, str):
        return _NOT_IN_YAML.sub(lambda m: f"\\u{ord(m[0]):04x}", json.dumps(value, ensure_ascii=False))
    return f"{value:f}" if isinstance(value, Decimal) else str(value)
