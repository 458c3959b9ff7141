"""The guard against part of a campaign, in processes of their own; and that the campaign would see what it is for.

A release runs `python -m tests.fuzz 200000 --only he/`.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzz import campaign, he_harness
from fuzz.dice import Dice
from fuzz.he_harness import WAYS, CiphertextHarness, PublicKeyHarness, harnesses

from secagg.he import guard

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("mutants", [3_000, pytest.param(20_000, marks=pytest.mark.slow)])
def test_part_of_a_campaign_kills_no_process(mutants: int) -> None:
    command = [sys.executable, "-m", "tests.fuzz", str(mutants), "--only", "he/", "--seed", "1", "--processes", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=540, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr
    assert f"{mutants} executions in" in done.stdout and "0 findings" in done.stdout
    assert "accepted, opening refused" in done.stdout


def test_every_way_of_bending_happens_and_most_of_the_guard_answers() -> None:
    used: set[str] = set()
    refusals: set[str] = set()
    for harness in harnesses():
        for number in range(300):
            used |= set(harness.input(Dice("ways", number))[1].split("+"))
            refusals.add(harness.run(Dice("ways", number)))
    assert used == WAYS
    assert len(refusals) >= 9, refusals


def lax(names: str) -> Any:
    """A guard that forgets one comparison."""

    def check(sealed: bytes, shape: guard.Shape) -> tuple[bytes, Any]:
        content = guard.sealed_content(sealed, shape.size)
        if names != "leading" and content[: len(shape.leading)] != shape.leading:
            raise he_harness.CiphertextError("leading fields")
        numbers = np.frombuffer(content, "<u8", offset=len(shape.leading))
        polynomials = numbers.reshape(2, len(shape.moduli), guard.DEGREE)
        if names != "zero" and not polynomials[1].any(axis=1).all():
            raise he_harness.CiphertextError("zeros")
        if names != "modulus" and (polynomials >= np.array(shape.moduli, np.uint64)[None, :, None]).any():
            raise he_harness.CiphertextError("modulus")
        return content, polynomials

    return check


@pytest.mark.parametrize("forgotten", ["modulus", "zero"])
def test_a_guard_that_forgets_a_comparison_is_found(monkeypatch: pytest.MonkeyPatch, forgotten: str) -> None:
    monkeypatch.setattr(guard, "_check_sealed", lax(forgotten))
    tally = campaign.campaign(CiphertextHarness(), 1, range(1500), shrink=5)
    assert any("no ciphertext were accepted" in finding.error for finding in tally.findings)


FATAL = """
import os, signal, sys
sys.path[:0] = sys.argv[1:3]
from fuzz import campaign
from secagg.he import guard
good = guard._check_sealed
def fatal(sealed, shape):  # what native code does with a coefficient that is too large
    try:
        return good(sealed, shape)
    except guard.CiphertextError as error:
        if "modulus" in error.what:
            os.abort()
        raise
campaign.WARM_UP = 0
guard._check_sealed = fatal
sys.exit(campaign._child("he/ciphertext", 1, range(500)))
"""


def test_a_process_that_dies_is_a_finding() -> None:
    command = [sys.executable, "-c", FATAL, str(ROOT / "tests"), str(ROOT)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT)
    tally = campaign._collected("he/ciphertext", process)
    assert [finding.error for finding in tally.findings] == ["the process ended with status -6"]


def test_honest_objects_pass_both_harnesses() -> None:
    """With nothing bent, the harnesses say so: a guard that refuses everything would be found."""
    key, _, ciphertext = he_harness.material(he_harness.P)
    guard.check_public_key(key, he_harness.P)
    guard.check_ciphertext(he_harness.framed(ciphertext.write()), he_harness.P)
    outcomes = {PublicKeyHarness().run(Dice("honest", i)) for i in range(60)}
    assert "accepted" in outcomes
