"""Every benchmark runs at a small size and prints one JSON object with the agreed keys; and their checks can fail."""

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks import __main__ as all_benchmarks
from benchmarks import peers, plots, scale
from benchmarks.bench import ROOT, Bar, reset_peak
from benchmarks.consortium import Consortium, MemoKey, Size
from benchmarks.our_attempt import OurAttempt
from benchmarks.scale_clients import peak_memory
from benchmarks.simulated_round import expected_sum, simulate
from secagg.errors import AuthenticationError
from secagg.signing import SigningKey
from secagg.types import ClientId

KEYS = {"benchmark", "what", "versions", "machine", "repetitions", "rows", "bars"}
LONG = ("bank", "heart", "privacy", "training", "peers", "round", "scale")  # even in the quick form
BENCHMARKS = [
    pytest.param(name, marks=[pytest.mark.slow] if name in LONG else [])
    for name in all_benchmarks.QUICK
    if (ROOT / "benchmarks" / f"{name}.py").exists()
]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_prints_one_json_object_as_its_last_line(name, tmp_path):
    if name == "peers" and not peers.PYTHON.exists():
        pytest.skip("Flower's environment is not there; do: make peers-setup")
    out = tmp_path / f"{name}.json"
    command = [sys.executable, "-m", f"benchmarks.{name}", "--json", "--out", str(out), *all_benchmarks.QUICK[name]]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.keys() >= KEYS
    assert found["benchmark"] == name
    assert found["rows"] and all(row.keys() == found["rows"][0].keys() for row in found["rows"])
    assert all(bar.keys() >= {"name", "value", "limit", "holds"} for bar in found["bars"])
    assert json.loads(out.read_text()) == found
    assert out.with_suffix(".md").read_text().startswith("# ")
    assert str(ROOT) not in done.stdout  # nothing names the machine


def test_peers_says_what_to_do_without_flowers_environment(capsys, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        peers.main(["--python", str(tmp_path / "python")])
    assert stopped.value.code == 2
    assert "do: make peers-setup" in capsys.readouterr().err


@pytest.mark.parametrize(
    "size", [Size(5, 100, dropout_percent=20), Size(7, 5000, slots_per_word=2, chunk_words=64), Size(200, 30)], ids=str
)
def test_a_simulated_round_gives_the_exact_sum_of_those_who_stayed(size):
    outcome = simulate(size)
    assert len(outcome.released.masked) == size.clients - size.dropouts
    assert outcome.total_seconds > 0 and outcome.bytes_upload >= 8 * size.length / size.slots_per_word
    assert len(outcome.reports) == 2 and outcome.client_peak > 2 * 2**20


def test_a_wrong_sum_is_found(monkeypatch):
    real = Consortium.values

    def off_by_one(self, client, start=0, stop=None):  # in this process only: the clients' inputs stay as they are
        values = real(self, client, start, stop)
        values[-1] += client == 3
        return values

    monkeypatch.setattr(Consortium, "values", off_by_one)
    with pytest.raises(RuntimeError, match="not the sum"):
        simulate(Size(5, 50, dropout_percent=20), processes=1)


def test_a_client_process_that_dies_ends_the_round(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises((RuntimeError, BrokenPipeError)):
        simulate(Size(5, 50), processes=1)


def test_inputs_are_the_same_in_pieces_and_fill_the_range():
    size = Size(5, 4000)
    consortium = Consortium(size)
    whole = consortium.values(ClientId(2))
    assert np.array_equal(consortium.values(ClientId(2), 400, 1001), whole[400:1001])
    assert not np.array_equal(consortium.values(ClientId(1)), whole)
    assert whole.min() < -0.9 * size.bound and whole.max() > 0.9 * size.bound and np.abs(whole).max() <= size.bound
    total = np.concatenate([part for _, part in expected_sum(consortium, consortium.ids)])
    assert np.array_equal(total, sum(consortium.values(client) for client in consortium.ids))


def test_a_memoising_key_forgets_no_check():
    key = SigningKey.from_bytes(bytes(range(32)))
    memo = MemoKey(key.verify_key.to_bytes())
    good, other = key.sign(b"message"), key.sign(b"other")
    for _ in range(2):
        memo.verify(good, b"message")
        for signature, message in ((good, b"other"), (other, b"message"), (good[:-1] + b"\0", b"message")):
            with pytest.raises(AuthenticationError):
                memo.verify(signature, message)


def test_our_side_of_the_comparison_ends_with_the_mean(tmp_path):
    consortium = Consortium(Size(5, 300, dropout_percent=20), memo=False)
    updates = {i: np.sin(np.arange(300) + i).astype(np.float32) for i in consortium.ids}
    attempt = OurAttempt(consortium, updates, tmp_path)
    attempt.deal_shares()
    assert all(attempt.mask(client) > 0 for client in attempt.alive)
    attempt.collect_shares()
    assert attempt.unmask() > attempt.removing > 0 and attempt.adding > 0
    attempt.close()
    mean = np.mean([updates[i] for i in attempt.alive], axis=0)
    assert np.abs(attempt.mean - mean).max() < 1 / 1024
    assert list(tmp_path.iterdir()) == []
    assert all(both[0] > 0 and both[1] > 0 for both in attempt.bytes.values())


def test_peak_memory_is_that_of_this_process():
    reset_peak()  # earlier tests of this process may have held more
    before = peak_memory()
    block = np.ones(32 * 2**20, dtype=np.uint8)
    assert peak_memory() - before >= len(block) // 2
    with pytest.raises(OSError):
        peak_memory("no-such-process")


def test_the_bar_stands_on_the_target_size_only(monkeypatch):
    found = {
        "length": 100_000, "graph": "ring", "degree": 172, "dropouts": 500, "seconds": 1300.0, "exact": True,
        "server_peak_bytes": 1, "client_peak_bytes": 1, "bytes_up": 1, "bytes_upload": 1, "bytes_down": 1,
    }  # fmt: skip
    monkeypatch.setattr(scale, "simulated", lambda size, processes: found | {"clients": size.clients})
    assert [bar.holds for bar in scale.run([100, 10_000], []).bars] == [False]
    assert scale.run([100], []).bars == []


@pytest.fixture
def figures(tmp_path):
    rounds = [
        {"clients": n, "length": length, "seconds": n / 7, "server_peak_bytes": 2**27, "client_peak_bytes": 2**28}
        for n, length in ((100, 10**5), (1000, 10**5), (5, 10**5), (5, 10**6))
    ]
    row = {"what": "a <step>, ms", "our encoding": "21-bit slots", "ours": 1.0, "Flower": 12.0}
    (tmp_path / "scale.json").write_text(json.dumps({"rounds": rounds}))
    (tmp_path / "peers.json").write_text(json.dumps({"rows": [row, row | {"our encoding": "32-bit slots"}]}))
    return plots.draw(tmp_path)


def test_figures_are_accessible_and_deterministic(figures):
    assert [path.name for path in figures] == ["peers.svg", "scale.svg"]
    for path in figures:
        root = ElementTree.fromstring(path.read_text())  # noqa: S314 -- our own file
        assert root.get("role") == "img"
        assert [child.tag.rpartition("}")[2] for child in root][:2] == ["title", "desc"]
    first = [path.read_bytes() for path in figures]
    assert [path.read_bytes() for path in plots.draw(figures[0].parent)] == first


def test_a_figure_has_no_place_for_zero():
    panel = plots.Panel("t", "x", "y", (plots.Series("s", ((1.0, 0.0), (2.0, 1.0))),))
    with pytest.raises(ValueError, match="domain"):
        plots.lines("t", "d", [panel])


def test_running_all_tells_missed_from_failed(monkeypatch, tmp_path, capsys):
    bar = Bar("speed", 2.0, 1.0, unit="s", reason="a slow day")

    def answer(command, **options):
        module = command[2]
        if module == "benchmarks.masking":
            return subprocess.CompletedProcess(command, 3, "", None)
        bars = [bar.as_json()] if module == "benchmarks.peers" else []
        return subprocess.CompletedProcess(command, 0, json.dumps({"bars": bars}) + "\n", None)

    monkeypatch.setattr(subprocess, "run", answer)
    assert all_benchmarks.main(["--only", "scale", "--out", str(tmp_path)]) == 0
    assert all_benchmarks.main(["--only", "scale,peers", "--out", str(tmp_path)]) == 1
    assert all_benchmarks.main(["--only", "masking,scale", "--out", str(tmp_path)]) == 2
    text = capsys.readouterr().out
    assert "MISSED a slow day" in text and "FAILED with exit status 3" in text


def test_flowers_side_imports_nothing_of_ours():
    text = (Path(peers.__file__).parent / "peer_flower" / "secaggplus.py").read_text()
    imported = {line.split()[1].split(".")[0] for line in text.splitlines() if line.startswith(("import ", "from "))}
    assert imported.isdisjoint({"secagg", "protocol", "dp", "ffm", "benchmarks"})
