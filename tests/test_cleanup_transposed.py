"""Transposed convolutions lose their output padding and keep their values."""

import pytest
from torch import nn

from cleanup_programs import cleaned, op_counts

BOTH = pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])


@BOTH
@pytest.mark.parametrize(
    ("options", "pads"),
    [
        ({"kernel_size": 9, "stride": 3, "padding": 4, "output_padding": 2}, 0),
        ({"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1}, 0),
        ({"kernel_size": 2, "stride": 2, "output_padding": 1}, 1),
        ({"kernel_size": (3, 2), "stride": (2, 3), "padding": (1, 0), "output_padding": (0, 2)}, 1),
        ({"kernel_size": 3, "stride": 3, "dilation": 2, "padding": 1, "output_padding": 2, "groups": 2}, 1),
    ],
)
def test_output_padding_becomes_a_slice(options: dict[str, object], pads: int, dynamic: bool) -> None:
    # `cleaned` proves the values.
    program = cleaned(
        lambda x, c: c(x), nn.ConvTranspose2d(4, 6, **options), shape=(4, 5, 6), dynamic=dynamic
    )

    counts = op_counts(program)
    assert (counts["conv_transpose2d"], counts["constant_pad_nd"]) == (1, pads)
    assert counts["slice"] >= 1
    (node,) = (n for n in program.graph.graph.nodes if "conv_transpose" in n.name)
    assert list(node.args[4]) == list(node.args[5]) == [0, 0]


def test_one_dimension_has_the_same_rule() -> None:
    program = cleaned(
        lambda x, c: c(x), nn.ConvTranspose1d(4, 6, 5, 2, padding=2, output_padding=1), shape=(4, 7)
    )

    assert op_counts(program)["slice"] == 1


def test_without_output_padding_nothing_changes() -> None:
    program = cleaned(lambda x, c: c(x), nn.ConvTranspose2d(4, 6, 4, 2, padding=1), shape=(4, 5, 6))

    assert op_counts(program)["slice"] == 0
