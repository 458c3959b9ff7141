"""`secagg evaluate --task finetune`: five hospitals that code diagnoses, over adapters, with DP and without.

Two plans on the same split, both with FFA-LoRA and a head:

- without DP, federated averaging with several local steps a round, which is how most federations train; beside it the
  same number of steps on the union of the records, every hospital by itself, and the best of them for as many samples
- with DP, protocol R2: one sample a round, so that the noise can be shared; beside it centralised DP-SGD, and every
  hospital by itself, all at the same ε

Logistic regression on a bag of words is what a statistician would try first.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ffm.data import Record
from ffm.evaluate.arms import ALONE, AS_MANY, MORE, Arms, Split, Wanted, best_alone, seeded, without_dp
from ffm.evaluate.study import NO_DP, Claim, Row, Study
from ffm.scores import bag_of_words, multinomial_regression
from ffm.task import TaskSettings, load_settings

WITHIN_CENTRALISED, ABOVE_ALONE, WITHIN_PRIVATE = 0.03, 0.10, 0.05
PLAIN, PRIVATE = "ffa-lora", "private"  # sections of the settings


def run(folder: Path, wanted: Wanted) -> Study:
    """All arms for every seed. `folder`: of the example, with `evaluate.toml`."""
    settings = load_settings(folder / "evaluate.toml")
    if wanted.quick:
        settings = _smaller(settings)
    rows: list[Row] = []
    for seed in wanted.seeds:
        rows += _seed(seeded(settings, seed), seed, wanted)
    return study(settings, rows, wanted.quick)


def study(settings: TaskSettings, rows: Sequence[Row], quick: bool = False) -> Study:
    """What the rows of all seeds say together."""
    private = f"{settings.privacy.protocol}, ε = {settings.privacy.epsilon}"
    whole = Study(
        task="finetune",
        title="Fine-tuning: five hospitals code diagnoses",
        what=f"{settings.data.sentence()}. {_plan(settings)} Accuracy over 18 chapters; hospitals' own test records "
        f"are drawn in the proportions of their training records. {MORE}",
        headline="accuracy",
        rows=(*rows, *best_alone(rows, "accuracy", lower=False)),
        quick=quick,
    )
    together, middle = whole.mean(PLAIN, NO_DP), whole.mean("centralised", NO_DP)
    best = f"best {ALONE}"
    return whole.with_claims(
        [
            Claim("federated without DP below centralised", middle - together, WITHIN_CENTRALISED, False),
            *(
                Claim(
                    f"federated without DP above the best single hospital{more}",
                    together - whole.mean(best + more, NO_DP),
                    ABOVE_ALONE,
                    True,
                )
                for more in ("", AS_MANY)
            ),
            Claim(
                "R2 below centralised DP-SGD at the same ε",
                whole.mean("centralised", private) - whole.mean(PLAIN, private),
                WITHIN_PRIVATE,
                False,
            ),
        ]
    )


def _plan(settings: TaskSettings) -> str:
    plain, private, p = settings.models[PLAIN], settings.models[PRIVATE], settings.privacy
    return (
        f"BERT-tiny. Without DP {plain.rounds} rounds of {plain.local_steps} local steps, each on a hospital's records "
        f"with probability {plain.sampling}; with DP (R2) {private.rounds} rounds of one step with probability "
        f"{private.sampling}, ε = {p.epsilon} at δ = {p.delta}, record, add/remove."
    )


def _smaller(settings: TaskSettings) -> TaskSettings:
    data = settings.data.model_copy(update={"cap_per_class": 60})
    models = {
        name: model.model_copy(update={"rounds": 3, "local_steps": min(3, model.local_steps)})
        for name, model in settings.models.items()
    }
    return settings.model_copy(update={"data": data, "models": models})


def _seed(settings: TaskSettings, seed: int, wanted: Wanted) -> list[Row]:
    plain, say = without_dp(settings), wanted.say
    say(f"seed {seed}: without DP")
    arms = Arms.load(plain, PLAIN, seed, compute=wanted.compute)
    split = arms.split
    rows = [_majority(split, seed), _words(split, seed), arms.federated(PLAIN, False), arms.centralised(False)]
    rows += arms.alone(range(len(arms.names)), False)
    say(f"seed {seed}: with DP")
    arms = Arms.load(settings, PRIVATE, seed, split, wanted.compute)
    rows += [arms.federated(PLAIN, True), arms.centralised(True)]
    rows += arms.alone(range(len(arms.names)), True)
    return rows


def _majority(split: Split, seed: int) -> Row:
    records = [record for site in split.sites.values() for record in site]
    labels = sorted({record.label for record in records})
    most = max(labels, key=lambda label: sum(record.label == label for record in records))
    share = sum(record.label == most for record in split.test) / len(split.test)
    return Row("majority class", NO_DP, seed, {"accuracy": share})


def _words(split: Split, seed: int) -> Row:
    """Multinomial logistic regression on the words of the text, on the union of the records."""
    records: list[Record] = [record for site in split.sites.values() for record in site]
    labels = sorted({record.label for record in records})
    number = {label: k for k, label in enumerate(labels)}
    train, test = bag_of_words([r.text for r in records], [r.text for r in split.test])
    classes = np.array([number[r.label] for r in records])
    fitted = multinomial_regression(train, classes, len(labels))
    truth = np.array([number[r.label] for r in split.test])
    accuracy = float((fitted(test).argmax(axis=1) == truth).mean())
    own = float((fitted(train).argmax(axis=1) == classes).mean())
    return Row("logistic regression on words, centralised", NO_DP, seed, {"accuracy": accuracy}, train=own)
