"""Families beyond the seventeen: each format lowered, read back, and proven."""

from functools import partial
from pathlib import Path

import pytest
import torch
from examples.networks.further import (
    FaceFinder,
    FastUpscaler,
    GatedSound,
    LineReader,
    Recommender,
    VideoNet,
    YoloDecoded,
)
from examples.networks.settle import images
from torch import Tensor

import zoo
from edgekit.judge import prove
from edgekit.load import load_candidate
from edgekit.stages.quantize.apply import calibrate, convert, observe
from edgekit_converters.cleanup import clean
from edgekit_converters.coreml import export_coreml
from edgekit_converters.onnx import export_onnx
from edgekit_converters.predict import SavedModel
from edgekit_converters.tflite import export_tflite
from zoo import ZooModel, photo, signal

EXPORTERS = {"onnx": export_onnx, "tflite": export_tflite, "coreml": export_coreml}
SUFFIX = {"onnx": ".onnx", "tflite": ".tflite", "coreml": ".mlpackage"}


def clips(n: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    return (torch.randn(n, 3, 4, 16, 16, generator=generator),)


def lines(n: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    return (images(n, generator, 1, 16, 12),)


def visits(n: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    indices = (torch.randint(0, rows, (n,), generator=generator) for rows in (50, 20, 10))
    return (torch.randn(n, 6, generator=generator), *indices)


FURTHER = (
    ZooModel("yolo_decoded", partial(YoloDecoded, 32), photo(3, 32)),
    ZooModel("face_finder", FaceFinder, photo(3, 32)),
    ZooModel("line_reader", LineReader, lines),
    ZooModel("recommender", Recommender, visits),
    ZooModel("video_net", VideoNet, clips),
    ZooModel("fast_upscaler", FastUpscaler, photo(1, 12)),
    ZooModel("gated_sound", GatedSound, signal(1, 48)),
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The tensor attribute")  # recurrent layers gather their weights anew
@pytest.mark.parametrize("model", FURTHER, ids=lambda model: model.name)
def test_every_format_computes_the_reference(model: ZooModel, tmp_path: Path) -> None:
    network, inputs = zoo.build(model), zoo.draw(model, 32, seed=5)
    # As people export it: at batch one, with nothing said about other batches.
    exported = torch.export.export(network, tuple(x[:1] for x in inputs))
    program, _ = clean(load_candidate(exported).program)
    observed = observe(program)
    rows = [tuple(x[i : i + 1] for x in inputs) for i in range(32)]
    calibrate(observed, [inputs] if program.dynamic_batch else rows)
    quantized = convert(observed)
    ends = (program.inputs, program.outputs, quantized.input_grids, quantized.output_grids)
    saved = {}
    for form, export in EXPORTERS.items():
        path = tmp_path / f"model{SUFFIX[form]}"
        export(quantized, path)
        saved[form] = SavedModel(form, path, *ends)

    proofs = prove(quantized, saved, [x.numpy() for x in zoo.draw(model, 8, seed=9)])

    assert set(proofs) == set(EXPORTERS)
    assert all(p.holds for p in proofs.values()), proofs
    assert all(p.max_allowed <= 6.0 for p in proofs.values()), proofs
