"""The INT8 grid: which tensors, which scales, and how that was decided.

rules.py → plan.py → quantizer.py → observers.py → apply.py      what is on the grid, and the graph on it
equalize.py, bias.py, correct.py, clamps.py, scalars.py          what makes the grid fit better
sensitivity.py, search.py, choose.py                             what was measured, and what was chosen
rungs.py                                                         ways to lower it, from a fixed grid to float compute
"""

import logging

# torchao reports every optional native library that it does not find, on import, to whoever listens.
_before = logging.root.manager.disable
logging.disable(logging.CRITICAL)
try:
    import torchao.quantization.pt2e.quantize_pt2e  # noqa: F401
finally:
    logging.disable(_before)
