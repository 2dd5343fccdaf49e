"""What the targets of a recipe decide where the user did not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from edgekit.recipe.rules import FORMATS
from edgekit.recipe.sections import Recipe
from edgekit_devices import Profile, find_profile


def preferred(targets: Sequence[str]) -> dict[str, Any]:
    """Formats, layout and ends that suit the targets, for the keys of a recipe that nobody set.

    Args:
        targets: names of profiles, or paths of their files.

    Raises:
        ProfileError: one of them is not known.
    """
    profiles = [profile for profile in map(find_profile, targets) if _is_a_device(profile)]
    if not profiles:
        return {}
    wanted = {profile.preferred_format for profile in profiles}
    found: dict[str, Any] = {"formats": tuple(each for each in FORMATS if each in wanted)}
    if wanted == {"tflite"}:
        # LiteRT's kernels have channels last; the runtime on the device turns inputs where the model has them first.
        found["layout"] = "nhwc"
        if all(profile.size_only for profile in profiles):
            found["io"] = "int8"
    return found


def for_targets(recipe: Recipe) -> Recipe:
    """Narrow the weights when a target's integer kernels saturate, and the size to the flash of a microcontroller.

    Raises:
        ProfileError: a target is not known.
    """
    profiles = [find_profile(target) for target in recipe.targets]
    if any(profile.int8_saturates for profile in profiles):
        bits = min(7, recipe.quantize.weight_bits)
        recipe = replace(recipe, quantize=replace(recipe.quantize, weight_bits=bits))
    flash = [profile.flash_kb * 1024 / 1e6 for profile in profiles if profile.flash_kb is not None]
    if flash:
        named = recipe.budget.max_size_mb
        most = min(flash) if named is None else min(named, *flash)
        recipe = replace(recipe, budget=replace(recipe.budget, max_size_mb=most))
    return recipe


def _is_a_device(profile: Profile) -> bool:
    """`generic` assumes nothing, so it prefers nothing."""
    return bool(profile.processors or profile.calibration or profile.size_only)


__all__ = ["for_targets", "preferred"]
