"""Commands, options and help texts. What a command does is in the module it imports when it runs."""

from pathlib import Path
from typing import Annotated

import typer

from ffm.cli.demos import demo_app
from ffm.cli.errors import reported
from ffm.cli.output import Format, FormatOption, Output

app = typer.Typer(
    name="secagg",
    help="Secure aggregation for federated foundation models: the server only ever sees masked, noised sums.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # rich tracebacks print local variables
)
report_app = typer.Typer(help="Accounting reports: check, compare, render; from the files alone.", no_args_is_help=True)
join_app = typer.Typer(help="Become a member: keys are made at the site and never leave it.", no_args_is_help=True)
app.add_typer(report_app, name="report")
app.add_typer(demo_app, name="demo")
app.add_typer(join_app, name="join")
privacy_app = typer.Typer(help="What a plan costs, before anything is trained.", no_args_is_help=True)
app.add_typer(privacy_app, name="privacy")

SiteArgument = Annotated[Path, typer.Argument(help="the site's folder", metavar="SITE")]


def _version(wanted: bool) -> None:
    if wanted:
        from secagg import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Secure aggregation for federated foundation models."""


@app.command()
def init(
    config: Annotated[Path, typer.Argument(help="consortium.toml", metavar="CONSORTIUM.toml")],
    out: Annotated[Path, typer.Option("--out", help="new folder: owner/ and sites/")] = Path("consortium"),
    model: Annotated[str | None, typer.Option("--model", help="section of the task's settings")] = None,
    owner_only: Annotated[
        bool, typer.Option("--owner-only", help="make owner/ alone; sites ask to join from their own machines")
    ] = False,
    format_: FormatOption = Format.text,
) -> None:
    """Make a consortium: owner's key, authority, signed roster and manifest, one folder per site."""
    with reported(format_):
        from ffm.cli.membership import make_consortium

        make_consortium(config, out, model, owner_only, Output(format_))


@app.command()
def server(
    site: SiteArgument,
    run: Annotated[Path | None, typer.Option("--run", help="run folder; default SITE/runs/<run id>")] = None,
    phase_seconds: Annotated[float, typer.Option(help="longest time for a phase without training")] = 60.0,
    training_seconds: Annotated[float, typer.Option(help="longest time for local training and upload")] = 1800.0,
    grace_seconds: Annotated[float, typer.Option(help="how long a lost client may stay away within a phase")] = 10.0,
    connect_seconds: Annotated[float, typer.Option(help="how long to wait for all clients before round 1")] = 300.0,
    validation: Annotated[
        Path | None,
        typer.Option("--validation", help="CSV of public records: end the task when the loss on them stands"),
    ] = None,
    patience: Annotated[int, typer.Option(help="with --validation: rounds without a better loss", min=1)] = 2,
    least: Annotated[
        float, typer.Option(help="with --validation: share by which a loss must be better", min=0.0, max=1.0)
    ] = 0.005,
    format_: FormatOption = Format.text,
) -> None:
    """Run the aggregation server of one signed manifest, to the last round."""
    with reported(format_):
        from ffm.cli.running import run_server, validation_of

        seconds = (phase_seconds, training_seconds, grace_seconds, connect_seconds)
        run_server(site, run, seconds, validation_of(validation, patience, least), Output(format_))


@app.command()
def client(
    site: SiteArgument,
    data: Annotated[
        Path | None, typer.Option("--data", help="CSV of this site's records, in place of records.csv")
    ] = None,
    device: Annotated[str | None, typer.Option("--device", help="cpu or cuda")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads for training", min=1)] = 1,
    upload_limit: Annotated[int | None, typer.Option(help="bytes per second", min=1)] = None,
    format_: FormatOption = Format.text,
) -> None:
    """Take part with one site's own data, within its own privacy budget."""
    with reported(format_):
        from ffm.cli.running import run_client

        run_client(site, (data, device, threads, upload_limit), Output(format_))


@app.command()
def decryptor(site: SiteArgument, format_: FormatOption = Format.text) -> None:
    """Open the encrypted sums of one signed manifest: neither server nor client, with a key of its own per attempt."""
    with reported(format_):
        from ffm.cli.running import run_decryptor

        run_decryptor(site, Output(format_))


@app.command("arrive")
def arrive(
    site: SiteArgument,
    new: Annotated[
        Path, typer.Argument(help="CSV of the records that came, in the form of records.csv", metavar="NEW.csv")
    ],
    replay: Annotated[
        str,
        typer.Option(
            "--replay", help="share of a period's records to keep of all earlier ones; the manifest's bounds count them"
        ),
    ] = "0",
    format_: FormatOption = Format.text,
) -> None:
    """At a site, before the next period's task: new records take the place of the old ones, some of which may stay."""
    with reported(format_):
        from ffm.cli.arrive import run

        run(site, new, replay, Output(format_))


@app.command()
def audit(
    subject: Annotated[
        str,
        typer.Argument(
            help="a site's folder, a demo's run folder, a manifest.json, or hospital, heart, or bank", metavar="SUBJECT"
        ),
    ],
    data: Annotated[
        list[Path] | None, typer.Option("--data", help="a site's records, in place of those in its folder; repeatable")
    ] = None,
    model: Annotated[str, typer.Option("--model", help="of an example: bert-tiny or minilm")] = "bert-tiny",
    out: Annotated[Path | None, typer.Option("--out", help="write the result here, for group 11 of the report")] = None,
    millions: Annotated[int, typer.Option("--noise", help="millions of noise draws to look at", min=1)] = 12,
    seed: Annotated[int, typer.Option("--seed", help="pins the planted runs", min=0)] = 0,
    format_: FormatOption = Format.text,
) -> None:
    """Run the training pipeline as configured on planted records; exit status 70 if a privacy claim does not hold."""
    with reported(format_):
        from ffm.cli.audit import run_audit

        run_audit(subject, data or [], model, (out, millions, seed), Output(format_))


@app.command()
def evaluate(
    task: Annotated[str, typer.Option("--task", help="finetune, adapters, prompt, prompt-lm, pretrain or continual")],
    seeds: Annotated[int, typer.Option("--seeds", help="repetitions", min=1)] = 3,
    quick: Annotated[
        bool, typer.Option("--quick", help="small and few: everything runs, no figure is evidence")
    ] = False,
    device: Annotated[str, typer.Option("--device", help="cpu or cuda")] = "cpu",
    out: Annotated[Path | None, typer.Option("--out", help="folder for TASK.json, TASK.md and TASK.html")] = None,
    format_: FormatOption = Format.text,
) -> None:
    """One task's table on this machine: the federation beside what one would do instead, with DP and without."""
    with reported(format_):
        from ffm.cli.evaluate import evaluate as run

        run(task, (seeds, quick, device), out, Output(format_))


@report_app.command("verify")
def report_verify(
    report: Annotated[Path, typer.Argument(help="report.json", metavar="REPORT")],
    owner: Annotated[
        Path | None, typer.Option("--owner", help="the consortium owner's key (owner.pub), from a source you trust")
    ] = None,
    format_: FormatOption = Format.text,
) -> None:
    """Recompute every figure of a report, and check every signature, from its files alone."""
    with reported(format_):
        from ffm.cli.report import verify

        verify(report, owner, Output(format_))


@report_app.command("diff")
def report_diff(
    before: Annotated[Path, typer.Argument(help="report.json of the one run", metavar="BEFORE")],
    after: Annotated[Path, typer.Argument(help="report.json of the other run", metavar="AFTER")],
    format_: FormatOption = Format.text,
) -> None:
    """What changed between two runs: in words, then every figure that differs. Exit status 0 either way."""
    with reported(format_):
        from ffm.cli.report import diff

        diff(before, after, Output(format_))


@report_app.command("render")
def report_render(
    report: Annotated[Path, typer.Argument(help="report.json", metavar="REPORT")],
    to: Annotated[str, typer.Option("--to", help="html, markdown, or opendp (registry entry, YAML)")] = "html",
    out: Annotated[Path | None, typer.Option("--out", help="file to write; default: standard output")] = None,
    format_: FormatOption = Format.text,
) -> None:
    """The report as a page for people, as Markdown, or as an entry for the OpenDP Deployments Registry."""
    with reported(format_):
        from ffm.cli.report import Target, render

        if to not in list(Target):
            raise typer.BadParameter(f"{to!r} is none of {', '.join(Target)}", param_hint="--to")
        render(report, Target(to), out, Output(format_))


@report_app.command("attach")
def report_attach(
    report: Annotated[Path, typer.Argument(help="report.json of the run", metavar="REPORT")],
    server: Annotated[Path, typer.Option("--server", help="the server's folder: its key signs the report")],
    audit: Annotated[Path | None, typer.Option("--audit", help="result of secagg audit")] = None,
    governance: Annotated[
        Path | None, typer.Option("--governance", help="JSON object of the operator's statements, see report schema")
    ] = None,
    format_: FormatOption = Format.text,
) -> None:
    """Put an audit's result or the operator's statements into a finished report, and sign it again."""
    with reported(format_):
        from ffm.cli.report import attach_files

        attach_files(report, server, (audit, governance), Output(format_))


@report_app.command("schema")
def report_schema() -> None:
    """The JSON Schema of report.json."""
    from ffm.cli.report import schema

    schema()


@privacy_app.command("calibrate")
def privacy_calibrate(
    target: Annotated[str, typer.Option("--epsilon", help="the ε that shall not be exceeded, for example 3")],
    delta: Annotated[str, typer.Option("--delta", help="for example 0.00001")],
    sampling: Annotated[str, typer.Option("--sampling", help="probability of a record in a step, as a/b; C: 1")],
    steps: Annotated[int, typer.Option("--steps", help="noised steps (C: sums) of all rounds and attempts", min=1)],
    clip_steps: Annotated[int, typer.Option("--clip-steps", help="clip norm in grid steps", min=1)] = 65536,
    shares: Annotated[int, typer.Option("--shares", help="R2, C: min_cohort - max_corrupt", min=1)] = 1,
    records: Annotated[int, typer.Option("--records", help="records of one person", min=1, max=64)] = 1,
    client_level: Annotated[
        int | None, typer.Option("--client-level", help="C: trained values of a client's update", min=1)
    ] = None,
    format_: FormatOption = Format.text,
) -> None:
    """Which noise for this ε? The smallest noise_steps whose certified ε is at most that."""
    with reported(format_):
        from ffm.cli.privacy import client_level_release, number, probability, record_level_release, show_noise

        if client_level is None:
            planned = record_level_release((steps, probability(sampling), clip_steps), shares, records)
        else:
            planned = client_level_release((steps, probability(sampling), clip_steps), shares, client_level)
        show_noise(number("--epsilon", target), number("--delta", delta), planned, Output(format_))


@privacy_app.command("plan")
def privacy_plan(
    settings: Annotated[Path, typer.Argument(help="the task's settings", metavar="SETTINGS.toml")],
    model: Annotated[str | None, typer.Option("--model", help="section of the settings; default: the first")] = None,
    format_: FormatOption = Format.text,
) -> None:
    """What will these settings cost, and can anything be learned? ε, noise and signal for each adversary."""
    with reported(format_):
        from ffm.cli.privacy import show_plan

        show_plan(settings, model, Output(format_))


@privacy_app.command("spent")
def privacy_spent(site: SiteArgument, format_: FormatOption = Format.text) -> None:
    """What has this site's population spent over all tasks, when was it last charged? From the site's own ledger."""
    with reported(format_):
        from ffm.cli.spent import show_spent

        show_spent(site, Output(format_))


@join_app.command("request")
def join_request(
    folder: Annotated[Path, typer.Argument(help="new folder for this site's keys")],
    name: Annotated[str, typer.Argument(help="the site's name, for example hospital-1")],
    format_: FormatOption = Format.text,
) -> None:
    """At the site: make both keys; send request.json and request.json.sig to the owner."""
    with reported(format_):
        from ffm.cli.membership import request

        request(folder, name, Output(format_))


@join_app.command("approve")
def join_approve(
    owner: Annotated[Path, typer.Argument(help="the owner's folder")],
    request: Annotated[Path, typer.Argument(help="request.json of the site")],
    format_: FormatOption = Format.text,
) -> None:
    """At the owner: issue the certificate and add the site to the members."""
    with reported(format_):
        from ffm.cli.membership import approve_request

        approve_request(owner, request, Output(format_))


@join_app.command("publish")
def join_publish(
    owner: Annotated[Path, typer.Argument(help="the owner's folder")],
    config: Annotated[Path, typer.Argument(help="consortium.toml")],
    model: Annotated[str | None, typer.Option("--model", help="section of the task's settings")] = None,
    format_: FormatOption = Format.text,
) -> None:
    """At the owner, when all are approved: sign roster and manifest, write one welcome file per member."""
    with reported(format_):
        from ffm.cli.membership import publish_documents

        publish_documents(owner, config, model, Output(format_))


@join_app.command("accept")
def join_accept(
    folder: Annotated[Path, typer.Argument(help="the site's folder")],
    welcome: Annotated[Path, typer.Argument(help="the owner's welcome file")],
    fingerprint: Annotated[str, typer.Option("--owner", help="the owner's fingerprint, as read out by phone")],
    format_: FormatOption = Format.text,
) -> None:
    """At the site: check the owner's answer against the fingerprint and the own keys, and keep it."""
    with reported(format_):
        from ffm.cli.membership import accept_welcome

        accept_welcome(folder, welcome, fingerprint, Output(format_))
