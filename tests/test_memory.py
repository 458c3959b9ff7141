"""A new period's records at a site: what comes, what stays of earlier ones, and that nothing is drawn twice."""

import csv
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dp.sampling import Csprng
from ffm.errors import DataError
from ffm.memory import Arrival, arrive

HEADER = ("text", "label")


def lines(mark: str, count: int) -> list[tuple[str, str]]:
    return [(f'{mark} "no" {k},\nsecond line', f"label {k % 3}") for k in range(count)]


def put(path: Path, rows: list[tuple[str, str]], header: tuple[str, ...] = HEADER) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def rows(path: Path) -> list[tuple[str, ...]]:
    with path.open(newline="") as file:
        return [tuple(row) for row in csv.reader(file)][1:]


class Site:
    def __init__(self, folder: Path) -> None:
        self.state, self.records, self.folder = folder / "state", folder / "records.csv", folder
        self.state.mkdir(mode=0o700)
        self._seed = 0

    def takes(self, name: str, came: list[tuple[str, str]], share: Fraction = Fraction(1, 4)) -> Arrival:
        self._seed += 1
        new = put(self.folder / f"{name}.csv", came)
        return arrive(self.state, self.records, new, share, Csprng(self._seed.to_bytes(32, "big")))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_new_records_come_and_a_share_of_all_earlier_ones_stays(site: Site) -> None:
    assert site.takes("one", lines("p1", 2000)) == Arrival(1, 2000, 0)
    assert rows(site.records) == lines("p1", 2000)
    for period in (2, 3, 4):
        came = site.takes(f"period {period}", lines(f"p{period}", 2000))
        assert (came.period, came.arrived) == (period, 2000) and abs(came.kept - 500) < 110  # 5 deviations
        found = rows(site.records)
        assert found[:2000] == lines(f"p{period}", 2000) and len(found) == 2000 + came.kept
    kept = Counter(text.split()[0] for text, _ in found[2000:])
    assert set(kept) == {"p1", "p2", "p3"} and all(abs(count - 167) < 65 for count in kept.values())
    assert set(found[2000:]) <= {row for k in (1, 2, 3) for row in lines(f"p{k}", 2000)}


def test_what_was_there_before_the_first_call_was_the_first_period(site: Site) -> None:
    put(site.records, lines("p1", 2000))
    came = site.takes("two", lines("p2", 2000))
    assert came.period == 2 and abs(came.kept - 500) < 110
    assert {text.split()[0] for text, _ in rows(site.records)[2000:]} == {"p1"}


def test_nothing_is_kept_where_nothing_is_asked_for(site: Site) -> None:
    site.takes("one", lines("p1", 50), Fraction(0))
    assert site.takes("two", lines("p2", 50), Fraction(0)) == Arrival(2, 50, 0)
    assert rows(site.records) == lines("p2", 50)


def test_the_same_file_again_is_the_same_period(site: Site) -> None:
    """Also after a crash between any two writes: coins are not thrown again for a period that has begun."""
    site.takes("one", lines("p1", 400))
    first = site.takes("two", lines("p2", 400))
    trained_on = rows(site.records)
    site.records.unlink()
    assert site.takes("two again", lines("p2", 400)) == first and rows(site.records) == trained_on


def test_what_lies_at_the_site_is_for_it_alone(site: Site) -> None:
    site.takes("one", lines("p1", 40))
    site.takes("two", lines("p2", 40))
    inside = sorted((site.state / "replay").iterdir())
    assert [path.name for path in inside] == ["kept-2.csv", "period-2.csv"]
    assert {path.stat().st_mode & 0o777 for path in (*inside, site.records)} == {0o600}
    assert (site.state / "replay").stat().st_mode & 0o777 == 0o700


def test_files_that_are_none_change_nothing(site: Site) -> None:
    site.takes("one", lines("p1", 10))
    before = site.records.read_bytes()
    cases = {
        "E514": put(site.folder / "empty.csv", []),
        "E512": put(site.folder / "other.csv", lines("x", 3), ("text", "diagnosis")),
        "E511": site.folder / "nowhere.csv",
    }
    for code, path in cases.items():
        with pytest.raises(DataError) as refused:
            arrive(site.state, site.records, path, Fraction(1, 4), Csprng(bytes(32)))
        assert refused.value.code == code and site.records.read_bytes() == before
        assert "diagnosis" not in str(refused.value)  # a file without a header has a record in its place
    broken = site.folder / "broken.csv"
    broken.write_bytes(b"text,label\n\xff\xfe,x\n")
    with pytest.raises(DataError, match="cannot be read"):
        arrive(site.state, site.records, broken, Fraction(1, 4), Csprng(bytes(32)))
    assert site.takes("two", lines("p2", 10)).period == 2


@pytest.mark.parametrize("share", ["2", "-1/4", "1/0", "some"])
def test_a_share_that_is_none_is_refused(share: str, tmp_path: Path) -> None:
    from ffm.cli.app import app

    done = CliRunner().invoke(app, ["arrive", str(tmp_path), str(tmp_path / "x.csv"), f"--replay={share}"])
    assert done.exit_code != 0 and "E515" in done.output
