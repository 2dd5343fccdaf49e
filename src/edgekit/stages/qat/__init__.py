"""Training on the grid: the quantized program itself becomes trainable, and what was trained becomes its integers.

fake.py                    quantization that gradients pass
steps.py, masters.py       which scales move together; where master weights begin
module.py                  the quantized program as a module, and back
run.py, stage.py           the training; the same as a stage of a run, kept on disk
"""

from edgekit.stages.qat.run import QatResult, qat
from edgekit.stages.qat.stage import train_settled

__all__ = ["QatResult", "qat", "train_settled"]
