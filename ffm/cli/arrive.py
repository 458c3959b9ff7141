"""`secagg arrive`: a new period's records at a site."""

from fractions import Fraction
from pathlib import Path

from dp.sampling import Csprng
from ffm.cli.output import Output
from ffm.errors import DataError
from ffm.memory import arrive
from ffm.site import load_site
from ffm.start import private_state, require_role


def run(folder: Path, new: Path, replay: str, out: Output) -> None:
    """Take them in; raises as `ffm.memory.arrive`, DataError E515 for a share that is none, DocumentError E354 for the
    folder of another role."""
    try:
        share = Fraction(replay)
    except (ValueError, ZeroDivisionError):
        share = Fraction(-1)
    if not 0 <= share <= 1:
        raise DataError("no share of the records", found=replay, expected="a fraction from 0 to 1, as 1/4", code="E515")
    site = load_site(folder)
    require_role(site, "client")  # a server has no records, and must not get any
    came = arrive(private_state(site), site.data, new, share, Csprng.from_os())
    value = {"period": came.period, "arrived": came.arrived, "kept": came.kept, "records": str(site.data)}
    text = f"period {came.period}: {came.arrived} records arrived, {came.kept} of earlier periods stay; {site.data}"
    out.result(value, text)
