"""The fields of the fifteen groups, with the words that stand beside them for readers of the schema."""

from dp.report_facts import SETS
from dp.report_schema_terms import (
    Schema,
    array,
    boolean,
    choice,
    count,
    decimal,
    either,
    figure,
    hexadecimal,
    integer,
    mapping,
    obj,
    text,
)

_NOTHING: Schema = {"type": "null"}
_CLIENT = integer("client id of the roster", 1)
_NAME = text("the client's name")
_TEXTS = array(text("sentence"), "sentences")
_EPSILON = figure("ε, rounded up to four decimals; “>50”: no useful guarantee")
_TIME = text("UTC, ISO 8601")
_SCORES = {
    "accuracy": figure("share of test records called right"),
    "macro_f1": figure("mean F1 over the classes"),
    "auc": figure("area under the ROC curve, from integer counts of ordered pairs"),
}
_EVENT: Schema = {"type": "object", "description": "event tree of one attempt, SPEC 10.6", "required": ["kind"]}

_IDENTITY: dict[str, Schema] = {
    "run_id": text("name of the run"),
    "consortium": text("name of the consortium"),
    "roster_version": integer("version of the membership", 1),
    "task": text("the manifest's task"),
    "base_model": text("base model"),
    "started": _TIME,
    "ended": _TIME,
    "duration_seconds": count("seconds"),
    "data": text("which records, in the owner's words"),
    "base_model_files": array(
        obj("pinned file", path=text("file name"), sha256=hexadecimal("SHA-256", 64)), "every file that is loaded"
    ),
    "members": array(
        obj("member", role=text("server or client"), name=text("name"), identity_key=hexadecimal("Ed25519 key", 64)),
        "members of the roster",
    ),
    "manifest_digest": hexadecimal("digest of the manifest in the protocol", 64),
    "manifest_sha256": hexadecimal("SHA-256 of the manifest", 64),
    "roster_root": hexadecimal("digest of the roster in the protocol", 64),
    "roster_sha256": hexadecimal("SHA-256 of the roster", 64),
    "signed_by_owner": array(text("document"), "what the owner signed"),
    "signed_by_clients": array(_CLIENT, "clients whose signed statement is in the report"),
    "signed_by_server": array(text("document"), "what the server signed"),
}

_RELEASE: dict[str, Schema] = {
    "per_round": text("what leaves in one round"),
    "recipients": array(text("recipient"), "who receives it"),
    "final": text("what is left at the end"),
    "final_model_digest": hexadecimal("digest of the last model; empty if nothing was released", None),
    "attempts": count("attempts in all"),
    "released_rounds": count("rounds whose sum was released"),
    "vector_length": count("trained values"),
    "starts_from": text("origin of the first model"),
    "adapter_method": text("method"),
    "adapter_rank": count("rank"),
    "tensors": count("trained tensors"),
    "values_released": count("noised values released over all rounds"),
    "not_released": text("what stays"),
}

_UNIT: dict[str, Schema] = {
    "unit": text("whom ε protects"),
    "adjacency": text("which two data sets are neighbours"),
    "records_per_person": integer("bound K on the records of one person, over all silos", 1),
    "people_in_several_silos": text("declared by the owner"),
    "max_records": integer("public upper bound on all records", 1),
    "populations": array(
        obj("ledger", client_id=_CLIENT, name=_NAME, silo=text("silo"), population=text("population")),
        "which privacy ledger belongs to whom",
    ),
    "meaning": text("in words"),
    "if_wrong": text("what holds if the declaration is wrong"),
}

_GUARANTEE: dict[str, Schema] = {
    "headline": obj(
        "the worst row within the declared threat model, worst client",
        client_id=_CLIENT,
        name=_NAME,
        epsilon=_EPSILON,
        delta=decimal("δ"),
        unit=text("unit"),
        adjacency=text("adjacency"),
        row=text("row of the trust table"),
        against=text("adversary of that row"),
        qualifier=text("what must stand beside every ε"),
        rounds=count("rounds of this task charged"),
        steps=count("noised releases in all"),
        complete=boolean("whether every client stated its ledger"),
        sentence=text("the claim in one sentence"),
    ),
    "per_client": array(
        obj(
            "one client",
            client_id=_CLIENT,
            name=_NAME,
            epsilon=_EPSILON,
            delta=decimal("δ"),
            basis=text("what the figure stands on"),
            steps=count("noised releases in its ledger"),
        ),
        "ε of each client's ledger, as charged",
    ),
    "per_adversary": array(
        obj(
            "row of the trust table",
            id=text("stable name"),
            adversary=text("who"),
            against=text("whose records"),
            knows=text("what it sees"),
            within_threat_model=boolean("whether the headline counts it"),
            noise=either(
                obj(
                    "noise between it and a record, in one release of this task",
                    shares_unknown_to_it=count("noise shares that it does not know"),
                    shares_charged=count("noise shares that the charge counts"),
                    noise_steps=count("standard deviation in grid steps, rounded down"),
                    noise_multiplier=decimal("standard deviation over sensitivity"),
                ),
                _NOTHING,
            ),
            worst=either(obj("worst client", client_id=_CLIENT, name=_NAME), _NOTHING),
            per_client=array(obj("one client", client_id=_CLIENT, epsilon=_EPSILON), "ε of each client"),
            epsilon=text("ε of the worst client, or why there is none"),
        ),
        "who could learn what about whom",
    ),
    "threat_model": text("which row is the headline"),
    "why": text("why the rows are equal, or differ"),
}

_MECHANISM: dict[str, Schema] = {
    "protocol": text("protocol of DP"),
    "name": text("mechanism in words"),
    "real_units": obj(
        "in units of the gradient",
        clip_norm=decimal("clip norm C"),
        noise_standard_deviation=decimal("standard deviation of the noise"),
        noise_multiplier=decimal("noise multiplier σ"),
        sampling_probability=decimal("sampling probability q"),
        grid_step=decimal("one grid step"),
        learning_rate=decimal("learning rate"),
    ),
    "integer_units": obj(
        "in grid steps: what is computed",
        scale=integer("grid steps per unit, where gradients or updates are clipped", 1),
        clip_steps=integer("clip norm", 1),
        noised_scale=integer("grid steps per unit, where the noise is added", 1),
        sensitivity_steps=integer("L2 sensitivity of a sum, where the noise is added", 1),
        noise_steps=count("standard deviation of all the noise that is counted on"),
        noise_shares=integer("shares that make it up", 1),
        variance_of_one_share=decimal("in grid steps squared"),
        sampling_numerator=integer("numerator of q", 1),
        sampling_denominator=integer("denominator of q", 1),
    ),
    "local_steps_per_round": integer("gradient steps between two aggregations", 1),
    "rounds_planned": integer("rounds", 1),
    "public_divisor": integer("divisor of the summed gradient: a constant", 1),
    "rotation": text("of what is noised, for narrow slots"),
    "after_the_noise": text("what follows"),
    "event_per_attempt": _EVENT,
}

_ACCOUNTING: dict[str, Schema] = {
    "accountant": text("how ε is computed"),
    "rounding": text("how figures are rounded"),
    "delta": obj(
        "the choice of δ",
        delta=decimal("δ"),
        max_records=integer("upper bound on all records", 1),
        delta_times_max_records=decimal("records that the failure probability stands for"),
        default_upper_bound=decimal("default bound"),
        within_default=boolean("whether δ is within it"),
        justification=text("why this δ"),
    ),
    "budget": obj("signed by the owner", epsilon=decimal("budget ε"), delta=decimal("δ"), per=text("per what")),
    "per_client": array(
        obj(
            "one client",
            client_id=_CLIENT,
            figures=obj(
                "certified ε and what it was held against",
                delta=decimal("δ"),
                epsilon=_EPSILON,
                continuous=figure("continuous noise, not certified"),
                method=text("pld or rdp"),
                rdp=figure("Rényi DP"),
                prv={"type": "string", "description": "PRV's upper bound, or why there is none"},
                closed_form={"type": "string", "description": "exact ε without sampling"},
                second_grid={"type": "string", "description": "on a coarser grid"},
                releases=count("releases composed"),
            ),
            composed=array(
                obj(
                    "equal releases",
                    steps=integer("how many", 1),
                    sampling_numerator=integer("numerator of q", 1),
                    sampling_denominator=integer("denominator of q", 1),
                    noise_steps=integer("standard deviation in grid steps", 1),
                    clip_steps=integer("sensitivity in grid steps", 1),
                    shares=integer("shares of the noise that are counted on", 1),
                    records=integer("records of one person at most, each sampled by itself", 1),
                ),
                "what is composed",
            ),
            charges=count("rows of kind charge"),
        ),
        "accounting of each client",
    ),
    "budget_curve": array(
        obj(
            "one client",
            client_id=_CLIENT,
            points=array(
                obj(
                    "after one charge",
                    seq=integer("row of the ledger", 1),
                    task=text("task"),
                    round=count("round"),
                    attempt=count("attempt"),
                    epsilon=_EPSILON,
                ),
                "in the order of the ledger",
            ),
        ),
        "ε spent after each charge",
    ),
    "delta_curve": obj(
        "δ of the headline's row for every ε",
        client_id=_CLIENT,
        row=text("row of the trust table"),
        points=array(obj("point", epsilon=decimal("ε"), delta=decimal("δ, rounded up")), "the curve"),
    ),
    "cross_checks": obj(
        "independent accountants",
        client_id=_CLIENT,
        name=_NAME,
        accountants=array(
            obj("accountant", name=text("which"), epsilon=text("its ε"), role=text("what it must do")), "held together"
        ),
    ),
    "record_level": either(
        obj(
            "of client-level releases: what the same charges mean for one record",
            unit=text("another unit than the headline's"),
            adjacency=text("another adjacency than the headline's"),
            sensitivity_steps=integer("how far one record moves a sum at most, in grid steps", 1),
            per_client=array(
                obj("one client", client_id=_CLIENT, name=_NAME, epsilon_per_record=_EPSILON), "ε of one record"
            ),
            why=text("why"),
        ),
        _NOTHING,
    ),
    "enforced": _TEXTS,
    "tested": _TEXTS,
    "assumed": _TEXTS,
}

_PARTICIPATION: dict[str, Schema] = {
    "clients": array(
        obj(
            "one client",
            client_id=_CLIENT,
            name=_NAME,
            in_released_sums=count("rounds whose sum counts it"),
            attempts_charged=count("attempts charged for this task"),
            charged_but_not_in_a_sum=count("paid for nothing"),
            stated=boolean("whether its statement is here"),
        ),
        "participation",
    ),
    "realised_noise": array(
        obj(
            "one released sum",
            round=integer("round", 1),
            attempt=count("attempt"),
            clients_in_the_sum=count("shares of noise in the sum"),
            shares_charged=count("shares that were charged"),
            variance_over_charged=decimal("variance in the sum over the variance charged"),
        ),
        "noise that was really there",
    ),
    "noise": text("how it counts"),
    "realised_sample_sizes": text("whether they are known"),
}

_UNPROTECTED: dict[str, Schema] = {
    "public": array(
        obj("quantity", quantity=text("what"), seen_by=text("by whom"), why=text("why")), "not covered by ε"
    ),
    "evaluation_data": text("test records"),
    "evaluation_people": text("whether ε covers the results"),
    "evaluation_covered": boolean("false: results of the evaluation are released outside ε"),
    "not_promised": _TEXTS,
    "tuning": text("how tuning is charged"),
    "tuning_cost": array(
        obj(
            "one client",
            client_id=_CLIENT,
            name=_NAME,
            charges_of_this_task=count("charges"),
            charges_of_other_tasks_and_runs=count("charges"),
            epsilon_of_this_task_alone=_EPSILON,
            epsilon_of_everything=_EPSILON,
        ),
        "what other tasks, runs and tuning cost",
    ),
}

_RANDOMNESS: dict[str, Schema] = {
    "generator": text("source of randomness"),
    "draws": array(text("draw"), "what it draws"),
    "noise": text("the noise"),
    "torch_generator": text("what torch draws"),
    "floating_point": text("what floats do"),
    "headroom": obj(
        "why no sum wraps around",
        slot_bits=integer("bits of a slot", 1),
        largest_value_of_one_client=integer("in grid steps", 1),
        largest_slot_sum=integer("over all clients, shifted to be positive", 1),
        slot_holds=integer("largest number in a slot", 1),
        fits=boolean("whether it fits"),
    ),
    "versions": mapping("^.*$", text("version"), "software"),
}

_AGGREGATION: dict[str, Schema] = {
    "graph": text("who shares keys with whom"),
    "assurance": text("what hides single uploads"),
    **{
        name: count(meaning)
        for name, meaning in (
            ("num_clients", "invited clients"),
            ("max_corrupt", "clients that an adversary may control"),
            ("threshold", "shares that reveal a mask"),
            ("quorum", "clients that must sign the set"),
            ("min_cohort", "smallest sum that is released"),
            ("max_dropouts", "dropouts survived"),
            ("slots_per_word", "values in one word"),
        )
    },
    "rounds": array(
        obj(
            "one attempt",
            round=integer("round", 1),
            attempt=count("attempt"),
            status=choice("how it ended", ("released", "aborted")),
            reason=text("why it was aborted"),
            started=_TIME,
            ended=_TIME,
            seconds=count("duration"),
            **{f"{name}_count": count("clients") for name in SETS},
            in_the_sum=array(_CLIENT, "clients in the released sum"),
            dropped=array(
                obj(
                    "client that did not reach the end",
                    client_id=_CLIENT,
                    first_missing_in=text("phase"),
                    reason=text("drop reason"),
                    in_the_sum=boolean("whether the sum counts it nevertheless"),
                ),
                "who dropped out",
            ),
            reported_faults=mapping("^[1-9][0-9]*$", text("reason"), "client id -> fault"),
            ctx=hexadecimal("context digest", 64),
            release_seq=either(integer("row of the release ledger", 1), _NOTHING),
            release_head=either(hexadecimal("hash of that row", 64), _NOTHING),
            root_u2=either(hexadecimal("root of the sharing clients", 64), _NOTHING),
            hash_u3=either(hexadecimal("hash of the clients in the sum", 64), _NOTHING),
            aggregate_digest=hexadecimal("digest of the sum", None),
            model_digest=hexadecimal("digest of the model", 64),
        ),
        "attempts",
    ),
}

_AUDIT: dict[str, Schema] = {
    "status": text("verdict"),
    "format": text("format of the audit"),
    "subject": array(obj("what was audited", name=text("name"), value=text("value")), "what was audited"),
    "checks": array(
        obj(
            "one check",
            name=text("what is checked"),
            passed=boolean("whether it holds"),
            found=text("what was measured"),
            bound=text("what it may be"),
            sees=text("which faults it shows"),
            blind=text("what it does not show"),
            comparisons=count("statistical comparisons"),
        ),
        "every check",
    ),
    "violations": array(text("check"), "checks that do not hold"),
    "comparisons": count("statistical comparisons in all"),
    "false_alarm_probability": text("of the whole audit"),
    "bounds": array(
        obj(
            "bound against the claim",
            name=text("check"),
            quantity=text("what"),
            value=text("measured"),
            claim=text("claimed"),
            ceiling=text("largest value that the check could have shown"),
        ),
        "measured bounds against the claim",
    ),
    "meaning": text("what it means"),
}

_UTILITY: dict[str, Schema] = {
    "status": text("whether it was measured"),
    "labels": array(text("class"), "classes"),
    "same_number_of_samples_seen": boolean("whether all trained equally long"),
    "methods": array(
        obj(
            "one result",
            method=text("what was trained"),
            client_id=either(_CLIENT, _NOTHING),
            name=text("hospital that trained alone"),
            test_client_id=either(_CLIENT, _NOTHING),
            seed=count("repetition"),
            samples_per_client=count("samples seen"),
            test_records=count("test records"),
            correct=count("called right"),
            twice_wins=either(array(count("wins"), "per class"), _NOTHING),
            **_SCORES,
        ),
        "every result",
    ),
    "summary": array(
        obj(
            "one method",
            method=text("what was trained"),
            meaning=text("in words"),
            runs=integer("results", 1),
            **_SCORES,
            lowest_accuracy=figure("lowest"),
            median_accuracy=figure("median"),
            highest_accuracy=figure("highest"),
        ),
        "means over repetitions",
    ),
    "federated_dp_against": array(
        obj(
            "difference of means",
            method=text("compared with"),
            accuracy_difference=figure("positive: the federation is better"),
            auc_difference=figure("positive: the federation is better"),
        ),
        "the federation against each comparator",
    ),
    "per_hospital": array(
        obj(
            "one hospital",
            client_id=_CLIENT,
            name=_NAME,
            tested_on=text("test records"),
            test_records=count("test records"),
            figures=array(obj("one method", method=text("what was trained"), **_SCORES), "results"),
        ),
        "results per hospital",
    ),
    "fairness": obj(
        "who is served worse",
        status=text("whether it was measured"),
        rows=array(
            obj(
                "one method",
                method=text("what was trained"),
                worst_client_id=_CLIENT,
                worst_accuracy=figure("accuracy"),
                best_client_id=_CLIENT,
                best_accuracy=figure("accuracy"),
                gap=figure("difference"),
            ),
            "gap between hospitals",
        ),
        groups_of_patients=text("groups within a hospital"),
    ),
    "meaning": text("what the figures are"),
}

_RISK: dict[str, Schema] = {
    "per_client": array(
        obj(
            "one client",
            client_id=_CLIENT,
            name=_NAME,
            membership_advantage=decimal("true-positive rate minus false-positive rate of the best test"),
            tpr_at_0_1_percent_fpr=decimal("share found at .1 % false accusations"),
            tpr_at_1_percent_fpr=decimal("share found at 1 % false accusations"),
            tpr_at_10_percent_fpr=decimal("share found at 10 % false accusations"),
        ),
        "bounds of each client, against the headline's adversary",
    ),
    "against": text("adversary"),
    "best_guess_at_even_odds": decimal("share of right guesses, before: one half"),
    "plain_words": _TEXTS,
    "source": text("what it is computed from"),
}

_GOVERNANCE: dict[str, Schema] = {
    "statement": text("what the report is not"),
    "meaning": text("how to read the list"),
    "stated": array(
        obj("statement", key=text("key"), asks=text("what is asked"), statement=text("the operator's words")),
        "what operators state",
    ),
    "checklist": array(
        obj(
            "pointer",
            framework=text("law or guideline"),
            reference=text("where in it"),
            topic=text("question"),
            groups=array(integer("group", 1), "groups that speak to it"),
            statement=text("the operator's words, where one is asked for"),
        ),
        "pointers",
    ),
    "not_stated": array(text("key"), "what is not stated"),
}

_RECOMPUTE: dict[str, Schema] = {
    "command": text("command"),
    "schema": text("how to get this schema"),
    "result": text("why no result is stored"),
    "recomputed": _TEXTS,
    "bound_by_signatures": _TEXTS,
    "not_recomputable": _TEXTS,
}

GROUPS: dict[str, tuple[str, dict[str, Schema]]] = {
    "identity": ("1 who, what and when; hashes and signatures", _IDENTITY),
    "release": ("2 what is released, and to whom", _RELEASE),
    "unit": ("3 unit, adjacency, records per person, overlap of silos", _UNIT),
    "guarantee": ("4 the guarantee per adversary", _GUARANTEE),
    "mechanism": ("5 the mechanism in real and integer units", _MECHANISM),
    "accounting": ("6 accounting, cross-checks, curves", _ACCOUNTING),
    "participation": ("7 participation and realised noise", _PARTICIPATION),
    "unprotected": ("8 what is not protected, and the cost of tuning", _UNPROTECTED),
    "randomness": ("9 randomness and numerics", _RANDOMNESS),
    "secure_aggregation": ("10 transcript of the secure aggregation", _AGGREGATION),
    "audit": ("11 empirical audit", _AUDIT),
    "utility": ("12 utility and fairness", _UTILITY),
    "risk": ("13 risk in plain words", _RISK),
    "governance": ("14 governance pointers", _GOVERNANCE),
    "recompute": ("15 how to recompute", _RECOMPUTE),
}
