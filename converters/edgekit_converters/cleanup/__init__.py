"""Clean-up of the float graph before quantization.

`clean` runs a literal table of passes, one file each, and proves after each that the outputs are the same.
"""

from edgekit_converters.cleanup.run import CleanupNote, clean, refresh_meta

__all__ = ["CleanupNote", "clean", "refresh_meta"]
