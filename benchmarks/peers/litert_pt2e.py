"""litert-torch's own PT2E quantizer: symmetric, per channel, static."""

from __future__ import annotations

from pathlib import Path

from benchmarks.peers.inputs import Inputs


def build(inputs: Inputs, out: Path) -> None:
    """Write `out`, calibrated with the quantizer's default observers."""
    import litert_torch
    import torch
    from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
    from litert_torch.quantize.quant_config import QuantConfig
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    samples = torch.from_numpy(inputs.calibration())
    rules = PT2EQuantizer().set_global(
        get_symmetric_quantization_config(is_per_channel=True, is_dynamic=False)
    )
    observed = prepare_pt2e(inputs.module(), rules)
    with torch.no_grad():
        for index in range(len(samples)):
            observed(samples[index : index + 1])
    quantized = convert_pt2e(observed, fold_quantize=False)
    found = litert_torch.convert(quantized, (samples[:1],), quant_config=QuantConfig(pt2e_quantizer=rules))
    found.export(str(out))
