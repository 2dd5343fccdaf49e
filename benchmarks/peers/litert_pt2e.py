"""litert-torch's own PT2E quantizer: symmetric, per channel, static."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from benchmarks.networks import Floats


def build(module: nn.Module, calibration: Floats, out: Path) -> None:
    """Write `out`, calibrated with the quantizer's default observers."""
    import litert_torch
    from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
    from litert_torch.quantize.quant_config import QuantConfig
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    example = (torch.from_numpy(calibration[:1]),)
    rules = PT2EQuantizer().set_global(
        get_symmetric_quantization_config(is_per_channel=True, is_dynamic=False)
    )
    observed = prepare_pt2e(torch.export.export(module, example).module(), rules)
    with torch.no_grad():
        for index in range(len(calibration)):
            observed(torch.from_numpy(calibration[index : index + 1]))
    quantized = convert_pt2e(observed, fold_quantize=False)
    litert_torch.convert(quantized, example, quant_config=QuantConfig(pt2e_quantizer=rules)).export(str(out))
