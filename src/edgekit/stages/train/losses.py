"""What a student is held against: the teacher's outputs, features and attention, and labels. All functions are pure.

Losses are means over everything, float32 whatever the arithmetic of the network was, and of the order of one for a
student that knows nothing, so that their weights compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

# Below this a probability counts as this, in logarithms.
_TINY: Final = 1e-8
KINDS: Final = ("logits", "probabilities", "scores", "values")


@dataclass(frozen=True, slots=True)
class Tap:
    """A node that student and teacher have in common.

    Attributes:
        node: its name in both graphs.
        axis: along which the student has fewer channels.
        kept: which of the teacher's channels the student kept; None for all.
    """

    node: str
    axis: int = 1
    kept: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """How an output is to be read.

    Attributes:
        kind: one of `KINDS`. "logits" and "probabilities" have classes along `axis`; "scores" may be classes or
            plain values, so that both their order and their size count; "values" have no classes.
        axis: of the classes.
        scale: variance of the teacher's output, the unit of squared errors.
    """

    kind: str
    axis: int | None
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}, expected one of {KINDS}")
        if self.kind != "values" and self.axis is None:
            raise ValueError(f"{self.kind} need an axis of classes")
        if not self.scale > 0:
            raise ValueError(f"scale is {self.scale}, expected a positive number")


def log_probabilities(output: Tensor, reading: Reading, temperature: float = 1.0) -> Tensor:
    """Logarithm of the softened probabilities, float32, same shape.

    Args:
        output: with a class axis.
        reading: tells the axis and whether these are probabilities already.
        temperature: divides the logits.
    """
    assert reading.axis is not None
    wide = output.float()
    logits = wide.clamp_min(_TINY).log() if reading.kind == "probabilities" else wide
    return F.log_softmax(logits / temperature, dim=reading.axis)


def soft(student: Tensor, teacher: Tensor, reading: Reading, temperature: float) -> Tensor:
    """Distance of an output from the teacher's.

    Classes: `T² · KL(teacher ‖ student)` at temperature T (Hinton, Vinyals & Dean 2015, section 2), the mean over
    samples and positions. Values: squared error in units of the teacher's variance. Scores: both.

    Args:
        student: the output.
        teacher: of the same shape.
        reading: of the output.
        temperature: above zero.
    """
    if reading.kind == "values":
        return squared(student, teacher, reading.scale)
    theirs = log_probabilities(teacher, reading, temperature)
    ours = log_probabilities(student, reading, temperature)
    divergence = (theirs.exp() * (theirs - ours)).sum(reading.axis).mean() * temperature**2
    if reading.kind == "scores":
        return divergence + squared(student, teacher, reading.scale)
    return divergence


def squared(student: Tensor, teacher: Tensor, scale: float) -> Tensor:
    """Mean squared error in units of `scale`."""
    return (student.float() - teacher.float()).square().mean() / scale


def hard(output: Tensor, labels: Tensor, reading: Reading) -> Tensor:
    """Distance of an output from labels.

    Args:
        output: with classes, or values.
        labels: class numbers of the output's shape without its class axis; or values of the output's shape.
        reading: of the output.

    Returns:
        Cross-entropy for classes, squared error in units of the variance for values.
    """
    if reading.kind == "values":
        return squared(output, labels.reshape(output.shape), reading.scale)
    logs = log_probabilities(output, reading).movedim(reading.axis, 1)
    return F.nll_loss(logs, labels.reshape(logs.shape[0], *logs.shape[2:]).long())


def features(student: Tensor, teacher: Tensor, tap: Tap) -> Tensor:
    """Squared distance from the teacher's features, in units of their own mean square (FitNets, Romero et al. 2015).

    Args:
        student: what the student's node gives.
        teacher: what the teacher's gives; the channels that the student kept are chosen here.
        tap: the node.
    """
    wide = _kept(teacher, tap).float()
    return (student.float() - wide).square().mean() / wide.square().mean().clamp_min(_TINY)


def attention(student: Tensor, teacher: Tensor, tap: Tap) -> Tensor:
    """`KL(teacher ‖ student)` of attention maps, mean over their rows (MiniLM, Wang et al. 2020, equation 6).

    Args:
        student: `[…, queries, keys]`, rows sum to one.
        teacher: the same, with more heads along `tap.axis` where heads were removed.
        tap: the node.
    """
    theirs = _kept(teacher, tap).float()
    apart = theirs.clamp_min(_TINY).log() - student.float().clamp_min(_TINY).log()
    return (theirs * apart).sum(-1).mean()


def _kept(teacher: Tensor, tap: Tap) -> Tensor:
    if tap.kept is None:
        return teacher
    return teacher.index_select(tap.axis, torch.tensor(tap.kept, device=teacher.device))


def mean_of(losses: Sequence[Tensor]) -> Tensor:
    """Mean of one or more scalars."""
    return torch.stack(list(losses)).mean()
