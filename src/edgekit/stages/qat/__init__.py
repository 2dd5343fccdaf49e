"""Training on the grid: the quantized program itself becomes trainable, and what was trained becomes its integers.

fake.py                    quantization that gradients pass
steps.py, masters.py       which scales move together; where master weights begin
module.py                  the quantized program as a module, and back
run.py                     the stage
"""

from edgekit.stages.qat.run import QatResult, qat

__all__ = ["QatResult", "qat"]
