"""Training a network to answer as another one does, or as labels say."""

from edgekit.stages.train.distill import Trained, distill
from edgekit.stages.train.fit import Epoch, Fitted, fit
from edgekit.stages.train.losses import Tap
from edgekit.stages.train.schedule import Schedule
from edgekit.stages.train.student import load_student
from edgekit.stages.train.trainable import Trainable, to_program, trainable

__all__ = [
    "Epoch",
    "Fitted",
    "Schedule",
    "Tap",
    "Trainable",
    "Trained",
    "distill",
    "fit",
    "load_student",
    "to_program",
    "trainable",
]
