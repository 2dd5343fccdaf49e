"""Training on the grid: the quantized program itself becomes trainable, and what was trained becomes its integers."""

from edgekit.stages.qat.run import QatResult, qat

__all__ = ["QatResult", "qat"]
