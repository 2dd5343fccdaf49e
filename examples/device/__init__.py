"""Programs of a device: numpy and edgekit-runtime, nothing else."""
