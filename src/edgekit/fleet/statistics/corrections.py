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

from edgekit.fleet.statistics.intervals import check_alpha, check_count


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
