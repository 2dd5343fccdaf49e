"""Atoms that are joined, pinned and numbered; runs of axes; groups of units; and the choice of those that go."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.stages.prune.context import Layer, kept_shape
from edgekit.stages.prune.costs import macs
from edgekit.stages.prune.damage import Curve
from edgekit.stages.prune.groups import Group, groups
from edgekit.stages.prune.plan import Plan, plan
from edgekit.stages.prune.trace import Structure
from edgekit.stages.prune.units import FIXED, Atoms, blocks

COUNT = 24
NUMBERS = st.integers(0, COUNT - 1)
PAIRS = st.lists(st.tuples(NUMBERS, NUMBERS), max_size=30)


def atoms(pairs: list[tuple[int, int]], pinned: list[int]) -> tuple[Atoms, np.ndarray]:
    made = Atoms()
    labels = made.fresh(COUNT)
    for a, b in pairs:
        made.join(labels[[a]], labels[[b]])
    for k in pinned:
        made.pin(labels[[k]], f"because of {k}")
    return made, labels


def classes(pairs: list[tuple[int, int]]) -> list[int]:
    """The smallest number that each is connected with, found one pair at a time."""
    found = list(range(COUNT))
    for a, b in pairs:
        low, high = sorted((found[a], found[b]))
        found = [low if k == high else k for k in found]
    return found


@given(PAIRS)
def test_what_is_joined_in_any_order_is_one(pairs: list[tuple[int, int]]) -> None:
    expected = classes(pairs)
    for order in (pairs, pairs[::-1]):
        made, labels = atoms(order, [])
        assert made.roots()[labels].tolist() == expected


@given(PAIRS, st.lists(NUMBERS, max_size=4), st.sets(NUMBERS, max_size=COUNT))
def test_units_are_what_has_weights_and_is_not_pinned(
    pairs: list[tuple[int, int]], pinned: list[int], weighty: set[int]
) -> None:
    made, labels = atoms(pairs, pinned)
    unit, reasons = made.units([labels[sorted(weighty)]])
    root = classes(pairs)
    stays = {root[k] for k in pinned}
    free = {root[k] for k in weighty} - stays
    for k in range(COUNT):
        assert (unit[k] != FIXED) == (root[k] in free)
        assert bool(made.stays(labels[[k]])[0]) == (root[k] in stays)
        for other in range(k):
            if unit[k] != FIXED:
                assert (unit[k] == unit[other]) == (root[k] == root[other])
    assert sorted(set(unit.tolist()) - {FIXED}) == list(range(len(free)))
    assert set(reasons) == stays
    for k in pinned[:1]:
        assert reasons[root[k]] == f"because of {k}"


def test_no_atoms_have_no_units() -> None:
    unit, reasons = Atoms().units([])
    assert unit.size == 0
    assert reasons == {}


def test_atoms_that_come_later_join_as_well() -> None:
    made = Atoms()
    first = made.fresh(3)
    made.join(first[:1], first)
    assert made.roots().tolist() == [0, 0, 0]
    second = made.fresh(2)
    made.join(second, first[1:])
    assert made.roots().tolist() == [0, 0, 0, 0, 0]


def test_a_pin_of_nothing_pins_nothing() -> None:
    made = Atoms()
    labels = made.fresh(2)
    made.pin(None, "none")
    made.pin(labels[:0], "empty")
    assert made.pinned() == {}
    assert made.units([labels])[0].tolist() == [0, 1]


SIZES = st.lists(st.integers(1, 5), max_size=4)


@given(st.lists(SIZES, max_size=4), st.randoms())
def test_runs_of_axes_cover_both_shapes_in_order_and_hold_as_many_values(parts, random) -> None:
    before = [n for part in parts for n in part]
    after = [n for part in parts for n in _other(math.prod(part), random)]
    pairs = blocks(before, after)
    for side, shape in enumerate((before, after)):
        covered = [k for pair in pairs for k in pair[side]]
        assert covered == list(range(len(shape)))
    for taken, given_ in pairs:
        assert math.prod(before[k] for k in taken) == math.prod(after[k] for k in given_)


def _other(size: int, random) -> list[int]:
    """Another shape with as many values."""
    shape = []
    while size > 1:
        factor = random.choice([n for n in range(2, size + 1) if size % n == 0])
        shape.append(factor)
        size //= factor
    return [*shape, *([1] * random.randint(0, 2))]


def test_shapes_of_different_sizes_have_no_runs() -> None:
    with pytest.raises(ValueError, match="differ in size"):
        blocks((2, 3), (5,))


def chain(widths: list[int], joined: bool = False) -> Structure:
    """A chain of linear layers, or one whose inner axes all belong together."""
    starts = [0] * len(widths) if joined else [0, *np.cumsum(widths).tolist()]
    axes = [None, *(np.arange(n) + start for n, start in zip(widths, starts, strict=False)), None]
    sizes = [3, *widths, 2]
    layers, parameters = [], {}
    for i, ((read, n), (out, m)) in enumerate(pairwise(zip(axes, sizes, strict=True))):
        layers.append(Layer(f"linear_{i}", "linear", n * m, (out, read), f"layers.{i}.weight"))
        parameters |= {
            (f"layers.{i}.weight", k): axis for k, axis in enumerate((out, read)) if axis is not None
        }
    units = 1 + max((int(axis.max()) for axis in axes if axis is not None), default=FIXED)
    return Structure(units, parameters, frozenset(), {}, {}, tuple(layers), {})


WIDTHS = st.lists(st.integers(2, 20), min_size=1, max_size=4)


@given(WIDTHS)
def test_units_between_the_same_layers_are_a_group(widths: list[int]) -> None:
    found = groups(chain(widths))
    assert [len(group.units) for group in found] == widths
    assert [group.name for group in found] == [f"layers.{i}.weight" for i in range(len(widths))]
    assert all(group.width == 1 for group in found)


def test_units_of_layers_that_add_up_are_one_group_with_all_their_weights() -> None:
    (group,) = groups(chain([8, 8, 8], joined=True))
    assert group.weights == ("layers.0.weight", "layers.1.weight", "layers.2.weight")


@pytest.mark.parametrize("pattern", ["layers.1", "layers.1.weight", "layers.[1-9]*", "*1*"])
def test_patterns_name_layers_or_weights(pattern: str) -> None:
    assert [group.name for group in groups(chain([4, 4]), [pattern])] == ["layers.0.weight"]


def test_a_single_unit_is_no_group() -> None:
    structure = chain([1, 4])
    assert [group.name for group in groups(structure)] == ["layers.1.weight"]


def test_a_unit_is_as_wide_as_on_the_narrowest_axis_of_a_layer_tables_aside() -> None:
    heads = np.repeat(np.arange(4), 6)
    layers = (
        Layer("qkv", "linear", 72 * 16, (np.tile(heads, 3), None), "qkv.weight"),
        Layer("proj", "linear", 24 * 16, (None, heads), "proj.weight"),
    )
    parameters = {
        ("qkv.weight", 0): np.tile(heads, 3),
        ("proj.weight", 1): heads,
        ("bias_table", 1): np.arange(4),
    }
    (group,) = groups(Structure(4, parameters, frozenset(), {}, {}, layers, {}))
    assert group == Group("qkv.weight", group.units, 6, ("qkv.weight",))


def test_parts_of_a_layer_that_are_used_by_themselves_are_groups_by_themselves() -> None:
    structure = chain([8])
    part = {"slice": (None, np.arange(3))}
    found = groups(Structure(**{**vars(structure), "nodes": part, "shapes": {"slice": (1, 3)}}))
    assert [group.units.tolist() for group in found] == [[0, 1, 2], [3, 4, 5, 6, 7]]


def test_no_units_have_no_groups() -> None:
    assert groups(Structure(0, {}, frozenset(), {}, {}, (), {})) == ()


def curves(among: Sequence[Group], scores: np.ndarray, multiple: int) -> list[Curve]:
    """Damage that adds up from scores of units."""
    found = []
    for group in among:
        order = group.units[np.argsort(scores[group.units], kind="stable")]
        total = np.concatenate([[0.0], np.cumsum(scores[order])])
        left = (*range(min(multiple, len(order)), len(order), multiple), len(order))
        found.append(Curve(order, left, tuple(float(total[len(order) - n]) for n in left)))
    return found


def planned(widths: list[int], scores: np.ndarray, share: float, multiple: int) -> Plan:
    structure = chain(widths)
    cost = macs(structure)
    whole = cost(np.ones(structure.n_units + 1, bool))
    among = groups(structure)
    return plan(
        structure, among, curves(among, scores, multiple), cost, wanted=share * whole, multiple=multiple
    )


@st.composite
def settings_of_plans(draw: st.DrawFn) -> tuple[list[int], np.ndarray, float, int]:
    widths = draw(WIDTHS)
    scores = draw(st.lists(st.floats(0, 10), min_size=sum(widths), max_size=sum(widths)))
    return widths, np.array(scores), draw(st.floats(0.05, 1.0)), draw(st.sampled_from([1, 2, 4, 8]))


@settings(deadline=None)
@given(settings_of_plans())
def test_a_plan_reaches_its_cost_or_leaves_one_block_of_every_group(given_) -> None:
    widths, scores, _, multiple = given_
    found = planned(*given_)
    cost = macs(chain(widths))
    assert math.isclose(found.after, cost(found.keep))
    assert found.reached == (found.after <= found.wanted)
    assert found.keep[-1]
    starts = np.cumsum([0, *widths])
    for start, n in zip(starts, widths, strict=False):
        left = int(found.keep[start : start + n].sum())
        assert left >= min(multiple, n)
        assert left == n or left % multiple == 0
        # The least important go, and of equals the first.
        kept = found.keep[start : start + n]
        assert scores[start : start + n][~kept].max(initial=0) <= scores[start : start + n][kept].min()
        if not found.reached:
            assert left <= multiple or left - multiple <= 0


@settings(deadline=None)
@given(settings_of_plans())
def test_a_plan_is_the_same_every_time_and_gives_back_what_it_need_not_take(given_) -> None:
    widths, scores, _, multiple = given_
    found, again = planned(*given_), planned(*given_)
    assert np.array_equal(found.keep, again.keep)
    cost = macs(chain(widths))
    for start, n in zip(np.cumsum([0, *widths]), widths, strict=False):
        units = np.arange(start, start + n)
        gone = units[~found.keep[units]]
        # The next block of a group that would do any good does not fit.
        back = gone[np.argsort(scores[gone], kind="stable")][-(multiple - (n - len(gone)) % multiple) :]
        more = found.keep.copy()
        more[back] = True
        if found.reached and len(gone) and scores[back].sum() > 0:
            assert cost(more) > found.wanted


def test_what_is_wanted_already_removes_nothing() -> None:
    found = planned([8, 8], np.ones(16), 1.0, 4)
    assert found.keep.all()
    assert found.before == found.after
    assert found.widths == (("layers.0.weight", 8, 8), ("layers.1.weight", 8, 8))


def test_nothing_to_remove_is_a_plan_that_is_not_reached() -> None:
    structure = chain([4])
    found = plan(structure, (), (), macs(structure), wanted=1.0, multiple=1)
    assert not found.reached
    assert found.keep.all()


def test_steps_that_save_nothing_are_jumped_over() -> None:
    """Integer kernels compute whole vectors: 16 channels cost what 12 do."""
    structure = chain([16])
    found = plan(
        structure,
        groups(structure),
        curves(groups(structure), np.arange(16.0), 4),
        lambda keep: float(np.ceil(keep[:16].sum() / 8)),
        wanted=1.0,
        multiple=4,
    )
    assert found.reached
    assert np.flatnonzero(found.keep[:16]).tolist() == list(range(8, 16))


def test_what_costs_nothing_is_kept() -> None:
    """Of 9 to 16 channels that cost the same, 16 stay."""
    structure = chain([32])
    found = plan(
        structure,
        groups(structure),
        curves(groups(structure), np.arange(32.0), 4),
        lambda keep: float(np.ceil(keep[:32].sum() / 16)),
        wanted=1.5,
        multiple=4,
    )
    assert found.keep[:32].sum() == 16


def test_a_large_block_that_saves_much_is_undone_where_a_small_one_is_enough() -> None:
    structure = chain([8, 8])
    cheap = Curve(np.arange(8), (4, 8), (1.0, 0.0))
    dear = Curve(np.arange(8, 16), (4, 8), (30.0, 0.0))
    price = np.array([1.0] * 8 + [50.0] * 8)
    found = plan(
        structure,
        groups(structure),
        (cheap, dear),
        lambda keep: float(price @ keep[:16]),
        wanted=404.0,
        multiple=4,
    )
    assert found.widths == (("layers.0.weight", 8, 4), ("layers.1.weight", 8, 8))


def test_parts_of_one_layer_are_told_of_together() -> None:
    structure = chain([8])
    parts = [Group("layers.0.weight", np.arange(8)[k : k + 4], 1, ("layers.0.weight",)) for k in (0, 4)]
    found = plan(structure, parts, curves(parts, np.arange(8.0), 2), macs(structure), wanted=0.0, multiple=2)
    assert found.widths == (("layers.0.weight", 8, 4),)


@given(st.lists(st.booleans(), min_size=6, max_size=6))
def test_a_narrower_shape_counts_what_is_kept_and_what_is_fixed(keep: list[bool]) -> None:
    axis = np.array([0, 1, FIXED, 5, 5])
    mask = np.array([*keep, True])
    assert kept_shape((None, axis), (7, 5), mask) == (7, keep[0] + keep[1] + 1 + 2 * keep[5])
