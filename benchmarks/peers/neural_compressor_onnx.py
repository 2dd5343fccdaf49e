"""Neural Compressor's static quantization of an ONNX file, which its third version no longer has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.peers.inputs import Inputs


class _Loader:
    """Samples one by one, each with a label that nobody looks at."""

    batch_size = 1

    def __init__(self, samples: Any) -> None:
        self._samples = samples

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        for index in range(len(self._samples)):
            yield self._samples[index : index + 1], 0


def build(inputs: Inputs, out: Path) -> None:
    """Write `out`, QDQ, with what it recommends for processors."""
    import onnx
    from neural_compressor import PostTrainingQuantConfig, quantization

    samples, model = inputs.calibration(), onnx.load(inputs.onnx)
    # It turns weights and keeps what the file says of their shapes, which it refuses then.
    del model.graph.value_info[:]
    wanted = PostTrainingQuantConfig(
        approach="static", quant_format="QDQ", calibration_sampling_size=[len(samples)]
    )
    found = quantization.fit(model, wanted, calib_dataloader=_Loader(samples))
    if found is None:
        raise RuntimeError("quantization.fit found nothing")
    found.save(str(out))
