"""The recipe: everything that a compression can be told, as one frozen value read from TOML.

A recipe is the preset's row, then the file, then the options of the command line; later ones win key by key.
Unknown keys, wrong types and values out of range are refused with file, key, value and the nearest right one:
a misspelt key that is silently ignored is a model compressed in another way than asked for.
"""

from edgekit.recipe.file import load_recipe
from edgekit.recipe.rules import PRESETS
from edgekit.recipe.sections import (
    SLOWER,
    Budget,
    Device,
    ModelCard,
    Prune,
    Qat,
    Quantize,
    Recipe,
    Search,
    Train,
)
from edgekit.recipe.targets import for_targets

__all__ = [
    "PRESETS",
    "SLOWER",
    "Budget",
    "Device",
    "ModelCard",
    "Prune",
    "Qat",
    "Quantize",
    "Recipe",
    "Search",
    "Train",
    "for_targets",
    "load_recipe",
]
