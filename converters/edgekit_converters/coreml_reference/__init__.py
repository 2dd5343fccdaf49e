"""Evaluates a saved Core ML package where Core ML itself cannot run.

The package is data from elsewhere, so it is only parsed: sizes and offsets are checked before they are used,
nothing in it is loaded as code, and no part of Apple's runtime sees it.

    package.py      files → protobuf, weight blobs        plan.py   protobuf → steps with bound functions
    values.py       protobuf values → tensors             evaluator.py   steps × inputs → outputs
    ops/            one function for each MIL op, table in ops/table.py
"""

from edgekit_converters.coreml_reference.evaluator import CoreMLReference

__all__ = ["CoreMLReference"]
