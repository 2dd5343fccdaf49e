"""Training on the grid: the quantized program itself becomes trainable, and what was trained becomes its integers."""
