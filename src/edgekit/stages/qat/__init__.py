"""Training on the grid: the quantized program itself becomes trainable, and what was trained becomes its integers."""

from edgekit.stages.qat.run import QatResult, qat
from edgekit.stages.qat.stage import train_settled

__all__ = ["QatResult", "qat", "train_settled"]
