"""The result is exactly the sum over U3, or the attempt aborts loudly. Nothing in between, whoever is lost and when."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulator import Federation, Simulation, make_manifest, random_values, simulate

from protocol.drops import DropReason
from protocol.effects import Abort, Released, ReleaseRecord
from protocol.messages import ShareKeys
from secagg.masking import Mask, pairwise_sign
from secagg.types import ClientId, Phase

PHASES = [p for p in Phase if p < Phase.COMPLETED]


def exact(simulation: Simulation) -> bool:
    """Whether the released total is, value by value, the clients' own integers over U3."""
    assert isinstance(simulation.outcome, Released)
    total = sum(simulation.values[c] for c in simulation.outcome.masked)
    return bool(np.array_equal(simulation.outcome.total, total))


@pytest.mark.parametrize("phase", PHASES, ids=lambda p: p.name)
@pytest.mark.parametrize("client", [1, 3, 5])
def test_one_client_lost_in_each_phase(phase: Phase, client: int) -> None:
    simulation = simulate({client: phase})
    assert isinstance(simulation.outcome, Released)
    in_u3 = phase > Phase.MASKED_INPUT  # lost after its upload: it is still in U3
    assert (client in simulation.outcome.masked) is in_u3
    assert len(simulation.outcome.masked) == 5 - (not in_u3)
    assert exact(simulation)
    assert simulation.errors == {}


@pytest.mark.parametrize("phase", PHASES, ids=lambda p: p.name)
def test_two_clients_lost_abort(phase: Phase) -> None:
    simulation = simulate({2: phase, 5: phase})
    assert isinstance(simulation.outcome, Abort)
    assert simulation.outcome.phase is phase
    assert "3 clients left, 4 required" in simulation.outcome.reason
    assert simulation.server.phase is Phase.ABORTED


def test_losses_in_different_phases_add_up() -> None:
    assert isinstance(simulate({1: Phase.SHARE_KEYS, 2: Phase.UNMASKING}).outcome, Abort)
    # n = 7, C = 1: threshold 5, so two may be lost
    simulation = run(7, 1, 2, {1: Phase.MASKED_INPUT, 7: Phase.UNMASKING})
    assert isinstance(simulation.outcome, Released) and simulation.outcome.masked == (2, 3, 4, 5, 6, 7)
    assert exact(simulation)


def run(n: int, c: int, dropouts: int, lost: dict[int, Phase], length: int = 5, seed: object = 0) -> Simulation:
    federation = Federation.create(make_manifest(n, c, dropouts, length))
    values = random_values(federation.manifest, range(1, n + 1), seed)
    simulation = Simulation(federation, values, {ClientId(k): v for k, v in lost.items()}, seed=seed)
    simulation.run()
    return simulation


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data())
def test_exact_sum_or_abort(data: st.DataObject) -> None:
    n = data.draw(st.integers(3, 12), "n")
    c = data.draw(st.integers(0, (n - 1) // 3), "C")
    required = max((n + c) // 2 + 1, c + 2, 3)
    lost = data.draw(st.dictionaries(st.integers(1, n), st.sampled_from(PHASES), max_size=n), "lost")
    simulation = run(n, c, n - required, lost, length=data.draw(st.integers(1, 60), "length"))
    left = n - len(lost)
    if left >= required:
        assert isinstance(simulation.outcome, Released)
        expected = tuple(i for i in range(1, n + 1) if lost.get(i, Phase.COMPLETED) > Phase.MASKED_INPUT)
        assert simulation.outcome.masked == expected
        assert exact(simulation)
    else:  # everybody's loss counts: some phase had too few answers
        assert isinstance(simulation.outcome, Abort)
    assert simulation.errors == {}


@pytest.mark.parametrize("n", [3, 4, 8, 12])
def test_distinguishable_contributions(n: int) -> None:
    """Client i contributes bit i, so the sum spells the declared set."""
    federation = Federation.create(make_manifest(n, n // 4, 0, 3, aggregation__bound=1 << 13))
    values = {ClientId(i): np.full(3, 1 << i, dtype=np.int64) for i in range(1, n + 1)}
    simulation = Simulation(federation, values)
    outcome = simulation.run()
    assert isinstance(outcome, Released)
    assert list(outcome.total) == [sum(1 << i for i in outcome.masked)] * 3


def test_extreme_values_do_not_overflow() -> None:
    federation = Federation.create(make_manifest())
    bound = federation.manifest.aggregation.bound
    for sign in (-1, 1):
        values = {ClientId(i): np.full(40, sign * bound, dtype=np.int64) for i in range(1, 6)}
        outcome = Simulation(federation, values).run()
        assert isinstance(outcome, Released) and set(outcome.total) == {sign * 5 * bound}


@pytest.mark.parametrize("fault", ["client sign", "server flips a self mask", "server forgets a pairwise mask"])
def test_a_mask_error_is_found(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """Flip a sign or drop a mask anywhere: the zero words betray it and no sum is returned."""
    if fault == "client sign":
        monkeypatch.setattr(
            "protocol.client_phases.pairwise_sign", lambda me, other: 1 if me == 2 else pairwise_sign(me, other)
        )
    else:
        from protocol.unmasking import Unmasking

        kind = "_self_mask" if "self" in fault else "_pairwise_masks"
        original = getattr(Unmasking, kind)
        if kind == "_self_mask":
            wrong = lambda s, c, seed: Mask(original(s, c, seed).seed, 1 if c == 2 else -1)  # noqa: E731
        else:
            wrong = lambda s, c, key: original(s, c, key)[1:]  # noqa: E731
        monkeypatch.setattr(Unmasking, kind, wrong)
    simulation = simulate({1: Phase.MASKED_INPUT})
    assert isinstance(simulation.outcome, Abort)
    assert "zero word" in simulation.outcome.reason


def ring(lost: dict[int, Phase], **options: object) -> Simulation:
    """One attempt of 200 clients on the ring: degree 42, threshold 32."""
    manifest = make_manifest(
        200, 10, 10, aggregation__graph="ring", aggregation__bound=1000, aggregation__min_cohort=106
    )
    federation = Federation.create(manifest)
    values = random_values(manifest, range(1, 201))
    simulation = Simulation(federation, values, {ClientId(c): p for c, p in lost.items()}, **options)  # type: ignore[arg-type]
    simulation.run()
    return simulation


def test_on_the_ring_two_clients_are_lost_in_every_phase() -> None:
    """Two in each phase, and later rounds go on: exact sums over U3, each client talking to 42 others only."""
    lost = {c: Phase(c // 2 % 5) for c in range(20, 30)}
    simulation = ring(lost)
    assert isinstance(simulation.outcome, Released) and exact(simulation) and not simulation.errors
    assert len(simulation.outcome.masked) == 194
    sent = [m for _, m in simulation.view if isinstance(m, ShareKeys)]
    assert {len(m.shares) for m in sent} == {42}


@pytest.mark.slow
def test_on_the_ring_a_client_without_enough_neighbors_ends_the_attempt() -> None:
    """Its secrets could not be rebuilt: the server notices before anything is published."""
    probe = ring({3: Phase.SHARE_KEYS})
    around = probe.server._drawn_graph.neighbors(ClientId(50))[:11]  # 31 of 42 are left, 32 are needed
    gone = ring(dict.fromkeys(around, Phase.MASKED_INPUT) | {3: Phase.SHARE_KEYS})
    assert gone.server._root_u1 == probe.server._root_u1
    assert isinstance(gone.outcome, Abort) and "neighbours left" in gone.outcome.reason
    assert gone.server.ledger.seq == 0


def test_a_server_that_lost_rows_gets_them_back_from_its_clients() -> None:
    first = simulate()
    values = random_values(first.federation.manifest, range(1, 6), "again")
    restored = Simulation(first.federation, values, memories=first.memories, round=2)  # with an empty ledger
    outcome = restored.run()
    assert isinstance(outcome, Abort) and "1 signed rows adopted" in outcome.reason
    assert restored.server.ledger == first.server.ledger
    assert [r for c, r in restored.records if c is None] == [
        ReleaseRecord(first.server.ledger.rows[0], first.server.ledger.head)
    ]
    again = Simulation(first.federation, values, memories=restored.memories, ledger=restored.server.ledger, round=2)
    assert isinstance(again.run(), Released) and exact(again) and again.server.ledger.seq == 2


def test_a_convicted_dealer_gets_no_further_than_phase_0() -> None:
    simulation = simulate(excluded=frozenset({ClientId(2)}))
    assert isinstance(simulation.outcome, Released) and simulation.outcome.masked == (1, 3, 4, 5)
    assert simulation.drops == [(2, DropReason.CONVICTED)]


def test_the_next_round_follows_on_the_ledger() -> None:
    first = simulate()
    values = random_values(first.federation.manifest, range(1, 6), "second round")
    second = Simulation(first.federation, values, memories=first.memories, ledger=first.server.ledger, round=2)
    assert isinstance(second.run(), Released) and exact(second)
    assert second.server.ledger.seq == 2


def test_a_client_that_missed_a_round_catches_up() -> None:
    first = simulate({4: Phase.ADVERTISE_KEYS})
    assert first.memories[ClientId(4)].ledger.seq == 0
    values = random_values(first.federation.manifest, range(1, 6), "second round")
    second = Simulation(first.federation, values, memories=first.memories, ledger=first.server.ledger, round=2)
    outcome = second.run()
    assert isinstance(outcome, Released) and 4 in outcome.masked and exact(second)
    assert second.memories[ClientId(4)].ledger.seq == 2


def test_same_seed_same_transcript() -> None:
    """No dependence on the order of sets or dictionaries: two runs say the same bytes."""
    one, two = simulate({2: Phase.MASKED_INPUT}), simulate({2: Phase.MASKED_INPUT})
    assert one.view == two.view
    assert all(np.array_equal(one.uploads[c], two.uploads[c]) for c in one.uploads)
