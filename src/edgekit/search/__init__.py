"""The search for a setting that holds a budget: the decision is pure, the trials are kept by Optuna.

`capabilities` says what there is to choose from, `next_setting` chooses, `open_store` keeps the trials (of several
machines, too), `chosen`, `nearest_miss`, `pareto` and `trial_table` say what they came to.
"""

from edgekit.search.autotune import Tuned, autotune_accuracy
from edgekit.search.capabilities import Capabilities, Island, Left, capabilities, damage_of
from edgekit.search.space import Calibration, Measured, Outcome, Setting, Trial
from edgekit.search.store import Store, open_store
from edgekit.search.verdict import Miss, chosen, nearest_miss, pareto, trial_table
from edgekit.search.walk import next_setting

__all__ = [
    "Calibration",
    "Capabilities",
    "Island",
    "Left",
    "Measured",
    "Miss",
    "Outcome",
    "Setting",
    "Store",
    "Trial",
    "Tuned",
    "autotune_accuracy",
    "capabilities",
    "chosen",
    "damage_of",
    "nearest_miss",
    "next_setting",
    "open_store",
    "pareto",
    "trial_table",
]
