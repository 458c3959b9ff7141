"""`secagg evaluate --task pretrain`: a masked language model on medical text, in public and federated phases.

Ways on the same texts: public phases alone; federated phases alone; both in turn; with DP and without. Beside the
federation, in turn with public text: all private texts in one place, and every hospital alone; they go on from the same
first public phase. Every phase is a manifest of its own on the merged model before it (`ffm.tasks.pretrain`).
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Final

from ffm.evaluate.arms import ALONE, Wanted, best_alone, download_bytes, upload_bytes, without_dp
from ffm.evaluate.study import NO_DP, Claim, Row, Study
from ffm.federation import Who, mean_samples
from ffm.task import TaskSettings, load_settings
from ffm.tasks.pretrain import Kind, Perplexities, Phase, PhaseResult, Pretraining, read_texts
from ffm.tasks.pretrain import run as live

PUBLIC, FEDERATED, IN_TURN = "public alone", "federated alone", "in turn"
_TURNS: Final[Mapping[str, tuple[Kind, ...]]] = {
    PUBLIC: ("public", "public"),
    FEDERATED: ("federated", "federated"),
    IN_TURN: ("public", "federated", "public", "federated"),
}


def run(folder: Path, wanted: Wanted) -> Study:
    """All ways for every seed. `folder`: of the example, with `pretrain.toml`."""
    settings = load_settings(folder / "pretrain.toml")
    if wanted.quick:
        settings = _smaller(settings)
    rows: list[Row] = []
    notes: list[str] = []
    clients: dict[str, dict[str, float]] = {}
    for seed in wanted.seeds:
        with tempfile.TemporaryDirectory() as place:
            draw = _Seed.of(settings, seed, wanted, Path(place))
            for row, told in draw.rows():
                rows.append(row)
                notes += told
            clients |= draw.clients
    return replace(study(settings, rows, notes, clients), quick=wanted.quick)


def study(
    settings: TaskSettings, rows: Sequence[Row], notes: Sequence[str], clients: Mapping[str, Mapping[str, float]]
) -> Study:
    """What the rows say together."""
    federated, p = settings.models["federated"], settings.privacy
    whole = Study(
        task="pretrain",
        title="Pre-training: a masked language model, public and federated phases in turn",
        what=f"{settings.data.sentence()}. BERT-tiny with its masked-language head. Public phases train all parameters "
        f"at the server until public validation text stops improving; federated ones {federated.rounds} rounds of "
        f"FFA-LoRA, merged back at the end; ε = {p.epsilon} at δ = {p.delta} for all of them together, {p.protocol}, "
        "record, add/remove. Perplexity of masked tokens on held-out private text; public: on public validation text. "
        f"'{IN_TURN}, centralised': with all private texts in one place; '{IN_TURN}, {ALONE}': with those of one "
        "hospital. Samples: in the rounds that were run, in public phases and private ones.",
        headline="perplexity",
        rows=(*rows, *best_alone(rows, "perplexity", lower=True, method=f"{IN_TURN}, {ALONE}")),
        notes=tuple(notes),
        extra={"perplexity by hospital": clients},
    )
    private = _privacy(settings, True)
    together = whole.mean(IN_TURN, private)
    public, alone = whole.mean(PUBLIC, NO_DP), f"{IN_TURN}, best {ALONE}"
    return whole.with_claims(
        [
            Claim("in turn with DP below public text alone, in perplexity", public - together, 0.0, True),
            *(
                Claim(
                    f"in turn with DP below public text and the best single hospital's, {privacy}",
                    whole.mean(alone, privacy) - together,
                    0.0,
                    True,
                )
                for privacy in (private, NO_DP)
            ),
        ]
    )


@dataclass(frozen=True, slots=True)
class _Seed:
    """One draw of the texts, and how many each has. `clients`: gathers by row the perplexity on each site's texts."""

    settings: TaskSettings
    seed: int
    wanted: Wanted
    folder: Path
    public: int
    sites: Mapping[str, int]
    clients: dict[str, dict[str, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: TaskSettings, seed: int, wanted: Wanted, folder: Path) -> "_Seed":
        """Draw."""
        plan = Pretraining(settings, (Phase("public", "public"),)).seeded(seed)
        task, manifest = plan.settings.find_task(), plan.manifest(1, plan.start)
        written = plan.settings.data.write(folder / "texts")
        sites = {name: len(task.read(path, manifest.training)) for name, path in written.sites.items()}
        public = len(read_texts(plan.settings, manifest, written).public)
        return cls(settings, seed, wanted, folder, public, sites)

    def rows(self) -> Iterator[tuple[Row, list[str]]]:
        """Each, and what is to be told of its phases."""
        public = self._phases(PUBLIC, False)
        yield self._row("before", False, public[0].before, ()), []
        yield self._lived(PUBLIC, False, public)
        for way in (FEDERATED, IN_TURN):
            for private in (True, False):
                yield self._lived(way, private, self._phases(way, private))
        yield from self.compared(public[:1])

    def compared(self, opening: Sequence[PhaseResult]) -> Iterator[tuple[Row, list[str]]]:
        """What stands beside the federation that takes turns. `opening`: the first public phase."""
        everybody: tuple[Who, ...] = ("centralised", *self.wanted.alone(len(self.sites)))
        for private in (True,) if self.wanted.quick else (True, False):
            for who in everybody:
                phases = self._phases(IN_TURN, private, who, opening)
                site = list(self.sites)[who] if isinstance(who, int) else ""
                yield self._lived(f"{IN_TURN}, {ALONE if site else who}", private, phases, site)

    def _phases(
        self, way: str, private: bool, who: Who = "federated", opening: Sequence[PhaseResult] = ()
    ) -> tuple[PhaseResult, ...]:
        name = f"{way}{'' if who == 'federated' else f', {who}'}{', DP' if private else ''}"
        self.wanted.say(f"seed {self.seed}: {name}")
        turns = tuple(Phase(kind, kind) for kind in _TURNS[way])
        settings = self.settings if private else without_dp(self.settings)
        plan = Pretraining(settings, turns, compute=self.wanted.compute)
        return live(plan, self.seed, self.folder / name, self.wanted.say, who, opening)

    def _lived(self, way: str, private: bool, phases: Sequence[PhaseResult], site: str = "") -> tuple[Row, list[str]]:
        name = f"{way}{f' ({site})' if site else ''}{', DP' if private else ''}"
        notes = [_told(self.seed, name, phase) for phase in phases]
        return self._row(way, private, phases[-1].after, phases, site), notes

    def _row(self, way: str, private: bool, found: Perplexities, phases: Sequence[PhaseResult], site: str = "") -> Row:
        federated = [phase.manifest for phase in phases if phase.kind == "federated"]
        travels = federated[:1] if way in (FEDERATED, IN_TURN) else []
        clients = tuple(found.clients.values())
        name = f"{way}{f' ({site})' if site else ''}, {_privacy(self.settings, private)}, seed {self.seed}"
        self.clients[name] = {client: round(figure, 2) for client, figure in found.clients.items()}
        others = [figure for name, figure in found.clients.items() if site and name != site]
        return Row(
            method=way,
            privacy=_privacy(self.settings, private),
            seed=self.seed,
            scores={"perplexity": found.held_out, "public": found.public, "clients' mean": fmean(clients)},
            outside=fmean(others) if others else float("nan"),
            worst=max(clients),
            samples=sum(self._samples(phase, site) for phase in phases),
            bytes_up=sum(map(upload_bytes, travels)),
            bytes_down=sum(map(download_bytes, travels)),
            seconds=sum(phase.seconds for phase in phases) if phases else float("nan"),
            site=site,
        )

    def _samples(self, phase: PhaseResult, site: str) -> int:
        private = self.sites[site] if site else sum(self.sites.values())
        return mean_samples(phase.manifest, phase.rounds, self.public if phase.kind == "public" else private)


def _privacy(settings: TaskSettings, private: bool) -> str:
    return f"{settings.privacy.protocol}, ε = {settings.privacy.epsilon}" if private else NO_DP


def _told(seed: int, name: str, phase: PhaseResult) -> str:
    spent = f", ε = {phase.epsilon} spent so far" if phase.epsilon else ""
    ended = "the plateau" if phase.stopped else "all its rounds"
    return (
        f"Seed {seed}, {name}, phase {phase.number} ({phase.kind}): {phase.rounds} rounds "
        f"until {ended}, held-out perplexity {phase.before.held_out:.2f} to {phase.after.held_out:.2f}{spent}."
    )


def _smaller(settings: TaskSettings) -> TaskSettings:
    data = settings.data.model_copy(update={"cap_per_chapter": 40})
    models = {
        name: model.model_copy(update={"rounds": 2, "local_steps": min(model.local_steps, 3)})
        for name, model in settings.models.items()
    }
    return settings.model_copy(update={"data": data, "models": models})
