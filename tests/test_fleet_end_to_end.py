"""Twenty devices with real agents and a real server: a good release reaches them all, bad ones are taken back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edgekit_runtime.state import IDLE
from support import candidates
from support.boards import Board, Operator, boards, served, until

pytestmark = pytest.mark.slow

BOARDS = 20
PLAN = {
    "stages": "25,100", "mode": "shadow", "soak": "1s", "timeout": "300s", "patience": "120s", "first_devices": 0,
    "min_devices": 4, "min_samples": 20, "latency_ratio": 2.5,
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Operator, list[Board], str]]:
    folder = tmp_path_factory.mktemp("fleet")
    with served(folder) as operator:
        version = operator.publishes(candidates.baseline())
        with boards(operator, folder / "boards", BOARDS) as found:
            first = operator.rolls_out(version, **{**PLAN, "stages": "100"})
            ended(operator, first, "completed")
            yield operator, found, candidates.baseline().release.id


def test_a_good_release_reaches_every_device_and_bad_ones_end_at_their_first_stage(
    world: tuple[Operator, list[Board], str],
) -> None:
    operator, found, serving = world
    all_serve(found, serving)
    for what, make in candidates.BAD.items():
        rollout = operator.rolls_out(operator.publishes(make()), **PLAN)
        told = ended(operator, rollout, "failed", what)
        assert told["stage"] == 0, f"{what}: {told['why']}"
        all_serve(found, serving, what)
        assert all(board.state().live == serving for board in found)
    rollout = operator.rolls_out(operator.publishes(candidates.good()), **PLAN)
    ended(operator, rollout, "completed")
    decisions = operator.asks(f"rollouts/{rollout}/decisions")["decisions"]
    assert [each["actor"] for each in decisions if each["kind"] != "opened"] == ["conductor"] * 4, decisions
    all_serve(found, candidates.good().release.id)
    assert operator.types("fleet", "audit", "verify")["whole"] is True


def ended(operator: Operator, rollout: str, state: str, what: str = "") -> dict[str, object]:
    """Wait for the end of a rollout, and see that it is the right one."""
    until(
        lambda: operator.asks(f"rollouts/{rollout}")["state"] not in {"running"},
        240,
        f"an end of {what or rollout}",
    )
    told = operator.asks(f"rollouts/{rollout}")
    assert told["state"] == state, f"{what}: {told['state']}, {told['why']}"
    return told


def all_serve(found: list[Board], release: str, what: str = "") -> None:
    """Wait until every device serves a release, and nothing is under way."""

    def at_rest() -> bool:
        states = [board.state() for board in found]
        return all(state.live == release and state.phase == IDLE for state in states)

    until(at_rest, 120, f"every device is back {what}")
