"""`secagg demo ...`: commands, options and help texts of the federations that play on one machine."""

from pathlib import Path
from typing import Annotated

import typer

from ffm.cli.errors import reported
from ffm.cli.output import Format, FormatOption, Output

demo_app = typer.Typer(help="Complete federations on this machine.", no_args_is_help=True)


@demo_app.command("hospital")
def demo_hospital(
    model: Annotated[
        str, typer.Option("--model", help="bert-tiny, minilm, or a section of the settings")
    ] = "bert-tiny",
    out: Annotated[Path, typer.Option("--out", help="where the run folder is made")] = Path("runs"),
    device: Annotated[str, typer.Option("--device", help="cpu or cuda")] = "cpu",
    settings: Annotated[Path | None, typer.Option("--settings", help="other settings than the example's")] = None,
    assurance: Annotated[
        str | None, typer.Option("--assurance", help="masking, dual or he; default: as in the settings")
    ] = None,
    format_: FormatOption = Format.text,
) -> None:
    """Five hospitals code diagnoses together; one is killed in the middle of an upload."""
    with reported(format_):
        from ffm.cli.demo import hospital

        hospital((model, assurance), out, device, settings, Output(format_))


@demo_app.command("heart")
def demo_heart(
    out: Annotated[Path, typer.Option("--out", help="where the run folder is made")] = Path("runs"),
    device: Annotated[str, typer.Option("--device", help="cpu or cuda")] = "cpu",
    settings: Annotated[Path | None, typer.Option("--settings", help="other settings than the example's")] = None,
    seeds: Annotated[int, typer.Option("--seeds", help="repetitions of the comparison", min=1)] = 1,
    format_: FormatOption = Format.text,
) -> None:
    """Four real hospitals learn together with little data: noise in shares inside the sum (protocol R2)."""
    with reported(format_):
        from ffm.cli.demo_table import run

        run(("heart", settings), out, device, seeds, Output(format_))


@demo_app.command("bank")
def demo_bank(
    out: Annotated[Path, typer.Option("--out", help="where the run folder is made")] = Path("runs"),
    device: Annotated[str, typer.Option("--device", help="cpu or cuda")] = "cpu",
    settings: Annotated[Path | None, typer.Option("--settings", help="other settings than the example's")] = None,
    seeds: Annotated[int, typer.Option("--seeds", help="repetitions of the comparison", min=1)] = 1,
    format_: FormatOption = Format.text,
) -> None:
    """Five banks judge credit risk together (protocol R2), beside logistic regression on the table."""
    with reported(format_):
        from ffm.cli.demo_table import run

        run(("bank", settings), out, device, seeds, Output(format_))


@demo_app.command("pretrain")
def demo_pretrain(
    settings: Annotated[
        Path | None, typer.Option("--settings", help="other settings than examples/hospital/pretrain-demo.toml")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="where the run folder is made")] = Path("runs"),
    device: Annotated[str, typer.Option("--device", help="of the hospitals: cpu or cuda")] = "cpu",
    format_: FormatOption = Format.text,
) -> None:
    """A model learns medical language: public text at the server, private text of five hospitals, and both again."""
    with reported(format_):
        from ffm.cli.demo_pretrain import run

        run(settings, out, device, Output(format_))


@demo_app.command("run")
def demo_run(
    settings: Annotated[Path, typer.Argument(help="the task's settings", metavar="SETTINGS.toml")],
    model: Annotated[str | None, typer.Option("--model", help="section of the settings; default: the first")] = None,
    out: Annotated[Path, typer.Option("--out", help="where the run folder is made")] = Path("runs"),
    device: Annotated[str, typer.Option("--device", help="cpu or cuda")] = "cpu",
    format_: FormatOption = Format.text,
) -> None:
    """Play any settings whose source lays out records, a task of one's own included; scores as its task gives them."""
    with reported(format_):
        from ffm.cli.demo_run import run

        run(settings, model, out, device, Output(format_))


@demo_app.command("continual")
def demo_continual(
    way: Annotated[str, typer.Option("--way", help="sequential, replay, ewc or adapter-per-period")] = "replay",
    rounds: Annotated[int | None, typer.Option("--rounds", help="of a period; default 8", min=1)] = None,
    out: Annotated[Path, typer.Option("--out", help="where the run folder is made")] = Path("runs"),
    device: Annotated[str, typer.Option("--device", help="cpu or cuda")] = "cpu",
    settings: Annotated[Path | None, typer.Option("--settings", help="other settings than the example's")] = None,
    format_: FormatOption = Format.text,
) -> None:
    """Five hospitals' diagnoses arrive in three periods: three signed tasks, one model, one ledger per hospital."""
    with reported(format_):
        from ffm.cli.demo_continual import continual

        continual((way, rounds), out, device, settings, Output(format_))
