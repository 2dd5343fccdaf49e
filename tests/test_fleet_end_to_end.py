"""Twenty devices with real agents and a real server: a good release reaches them all, bad ones are taken back."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from examples.fleet.boards import Board, Operator, boards, served, until

from support import candidates
from support.candidates import MODEL, inputs
from support.colours import write_bundle
from support.releases import Published

pytestmark = pytest.mark.slow

BOARDS = 20
# A first stage of a half: of a quarter every twentieth draw has no device of one of the two regions.
PLAN = {
    "stages": [50.0, 100.0], "soak_s": 1, "timeout_s": 300, "patience_s": 120, "first_devices": 0,
    "limits": {"devices": 4, "samples": 20, "latency_ratio": 2.5},
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Operator, list[Board]]]:
    folder = tmp_path_factory.mktemp("fleet")
    seen = {region: folder / f"{region}.npy" for region in ("eu", "us")}
    for seed, (region, path) in enumerate(seen.items()):
        np.save(path, inputs(512, marked=region == "eu", seed=seed))
    with served(folder / "fleet") as operator, boards(operator, folder / "boards", BOARDS, seen) as found:
        yield operator, found


def test_a_good_release_reaches_every_device_and_bad_ones_end_at_their_first_stage(
    world: tuple[Operator, list[Board]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    operator, found = world
    bundles = tmp_path_factory.mktemp("bundles")

    def rolled_out(published: Published, **plan: object) -> dict[str, object]:
        version = published.release.version
        operator.publishes(write_bundle(published, bundles / version), MODEL, version)
        rollout = operator.rolls_out(MODEL, version, **{**PLAN, **plan})
        ended: dict[str, object] = operator.waits(rollout, 240)
        return ended

    def serve(release: str, why: str) -> None:
        until(lambda: all(board.rests_on(release) for board in found), 120, why)

    first = candidates.baseline()
    assert rolled_out(first, stages=[100.0])["state"] == "completed"
    serve(first.release.id, "the first release on every device")
    for what, make in candidates.BAD.items():
        told = rolled_out(make())
        assert (told["state"], told["stage"]) == ("failed", 0), f"{what}: {told['why']}"
        serve(first.release.id, f"every device back after {what}")
    told = rolled_out(candidates.good())
    assert told["state"] == "completed", told["why"]
    decisions = operator.asks(f"rollouts/{told['id']}/decisions")["decisions"]
    assert {each["actor"] for each in decisions if each["kind"] != "opened"} == {"conductor"}
    serve(candidates.good().release.id, "the good release on every device")
    assert operator.asks("audit/verify")["whole"] is True
