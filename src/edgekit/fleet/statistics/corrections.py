"""What level each of several gates, stages and slices gets, so that the whole rollout keeps its own.

Two errors, two rules:

- **A good candidate is stopped.** It takes one gate of one slice at one stage, so these chances add up, and each gets
  its part of alpha (Bonferroni).
- **A bad candidate passes.** Something is wrong with it, so for one gate the truth is beyond the limit; to pass, it
  has to pass that very gate. All gates together err no more often than that one alone, so each may use all of alpha:
  Berger, "Multiparameter hypothesis testing and acceptance sampling", Technometrics 1982 (intersection-union test). The
  same holds for stages and slices that must all pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgekit.fleet.statistics.intervals import check_alpha, check_count, refused


@dataclass(frozen=True, slots=True)
class Levels:
    """Levels of a single test.

    Attributes:
        fail: of the test that stops a rollout: one part of all that can stop a good candidate.
        accept: of the test that lets it pass: no correction, as every test has to accept.
    """

    fail: float
    accept: float


def levels(*, stop: float, accept: float, gates: int, stages: int = 1, slices: int = 1) -> Levels:
    """Levels of each test of a rollout.

    Args:
        stop: probability that a good candidate is stopped anywhere, at most.
        accept: probability that a candidate beyond one limit passes all gates, at most.
        gates: that are judged.
        stages: that are judged anew, each on evidence of its own. One where evidence adds up over the stages.
        slices: of the fleet that are judged apart.
    """
    check_alpha(accept, "accept")
    return Levels(bonferroni(stop, gates, stages, slices), accept)


def bonferroni(alpha: float, *counts: int) -> float:
    """Alpha in equal parts, for instance `bonferroni(0.05, gates, stages, slices)`.

    Raises:
        InvalidError: alpha is no level, or a count is below 1.
    """
    check_alpha(alpha)
    parts = 1
    for count in counts:
        check_count("tests", count, 1)
        parts *= count
    return alpha / parts


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p-values: those of at most alpha are shown, and any of them is wrong with probability alpha at most.

    Holm, "A simple sequentially rejective multiple test procedure", 1979. It allows any dependence, shows all that
    Bonferroni shows and sometimes more. With p-values that hold at every look, so do the adjusted ones.

    Args:
        p_values: by name of the hypothesis.

    Raises:
        InvalidError: one is outside [0, 1].
    """
    for name, p in p_values.items():
        if not 0 <= p <= 1:
            raise refused(f"p-value {p} of {name}", "a number in [0, 1]")
    adjusted: dict[str, float] = {}
    so_far = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        so_far = max(so_far, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = so_far
    return {name: adjusted[name] for name in p_values}
