"""Olive's static quantization pass with the settings that it starts from."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from benchmarks.peers.inputs import Inputs

SCRIPT = """
import os, numpy as np, torch
from olive.data.registry import Registry

class Samples(torch.utils.data.Dataset):
    def __init__(self, path, name):
        self.x, self.name = np.load(path), name
    def __len__(self):
        return len(self.x)
    def __getitem__(self, index):
        return {self.name: torch.from_numpy(self.x[index])}, torch.tensor(0)

@Registry.register_dataset()
def edgekit_samples(data_dir=None, path="", name="", **kwargs):
    return Samples(path, name)
"""


def build(inputs: Inputs, out: Path) -> None:
    """Write `out`, QDQ."""
    os.environ["OLIVE_DISABLE_TELEMETRY"] = "1"
    import onnx
    from olive.model import ONNXModelHandler
    from olive.passes.olive_pass import create_pass_from_dict
    from olive.passes.onnx.quantization import OnnxStaticQuantization

    name = onnx.load(inputs.onnx).graph.input[0].name
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "samples.py"
        script.write_text(SCRIPT)
        wanted = {
            "data_config": {
                "name": "edgekit_samples",
                "user_script": str(script),
                "load_dataset_config": {
                    "type": "edgekit_samples",
                    "params": {"path": str(inputs.samples), "name": name},
                },
                "dataloader_config": {"type": "default_dataloader", "params": {"batch_size": 1}},
            },
        }
        static = create_pass_from_dict(OnnxStaticQuantization, wanted, disable_search=True)
        made = static.run(ONNXModelHandler(str(inputs.onnx)), str(Path(folder) / "made"))
        onnx.save(onnx.load(made.model_path), out)
