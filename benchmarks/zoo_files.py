"""Networks of many kinds as files, INT8 and float32, for both runtimes; made once and kept in `.cache`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from examples.networks.classic import VGG, BasicBlock, Bottleneck, DenseNet, ResNet, SqueezeNet, UNet
from examples.networks.detect import YoloStyle
from examples.networks.further import FaceFinder, FastUpscaler, GatedSound, LineReader, VideoNet, YoloDecoded
from examples.networks.mobile import DSCNN, EfficientNetLite, MobileNetV1, MobileNetV2, MobileNetV3Small
from examples.networks.recent import (
    AtrousSegmenter,
    EfficientNetStyle,
    InceptionStyle,
    PointNet,
    RawAudio,
    StockEncoder,
    SwinStyle,
)
from examples.networks.sequence import TCN
from examples.networks.settle import images, settle
from examples.networks.various import (
    MLP,
    Activations,
    Autoencoder,
    EinsumAttention,
    Mixer,
    NormNet,
    ShuffleNetV2,
    SuperResolution,
)
from examples.networks.vision import ConvNeXt, ViT
from torch import Tensor, nn

from benchmarks.networks import ResNet20

CACHE = Path(__file__).parents[1] / ".cache" / "prediction"
PRECISIONS = ("int8", "float32")
FORMATS = ("onnx", "tflite")
IMAGE_AXES = 3


@dataclass(frozen=True, slots=True)
class Drawn:
    """A network with settled weights.

    Attributes:
        name: of its files' folder.
        make: gives the module.
        shape: of one input.
    """

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]


NETWORKS: tuple[Drawn, ...] = (
    Drawn("mobilenet-v1", partial(MobileNetV1, 0.5), (3, 160, 160)),
    Drawn("mobilenet-v2", MobileNetV2, (3, 224, 224)),
    Drawn("mobilenet-v3-small", MobileNetV3Small, (3, 224, 224)),
    Drawn("efficientnet-lite0", EfficientNetLite, (3, 224, 224)),
    Drawn("resnet-20", ResNet20, (3, 32, 32)),
    Drawn("resnet-18", ResNet, (3, 160, 160)),
    Drawn("vgg", partial(VGG, (32, 32, 0, 64, 64, 0, 128, 128, 0), 32, 256, 10), (3, 32, 32)),
    Drawn("squeezenet", SqueezeNet, (3, 160, 160)),
    Drawn("densenet", partial(DenseNet, 16, (4, 6, 8, 6), 100), (3, 128, 128)),
    Drawn("shufflenet-v2", partial(ShuffleNetV2, (24, 116, 232, 464), (4, 8, 4), 1000), (3, 160, 160)),
    Drawn("unet", partial(UNet, 16, 3, 2), (3, 96, 96)),
    Drawn("yolo", partial(YoloStyle, 16, 20), (3, 160, 160)),
    Drawn("ds-cnn", DSCNN, (1, 49, 10)),
    Drawn("vit-tiny", ViT, (3, 224, 224)),
    Drawn("convnext", ConvNeXt, (3, 224, 224)),
    Drawn("mixer", partial(Mixer, 128, 16, 128, 6, 100), (3, 128, 128)),
    Drawn("inception", InceptionStyle, (3, 128, 128)),
    Drawn("swin", SwinStyle, (3, 112, 112)),
    Drawn("efficientnet", EfficientNetStyle, (3, 96, 96)),
    Drawn("atrous-segmenter", AtrousSegmenter, (3, 128, 128)),
    Drawn("face-finder", FaceFinder, (3, 128, 128)),
    Drawn("super-resolution", SuperResolution, (1, 96, 96)),
    Drawn("resnet-50", partial(ResNet, Bottleneck, (2, 2, 3, 2), (32, 64, 128, 256)), (3, 128, 128)),
    Drawn("resnext", partial(ResNet, Bottleneck, (1, 2, 2, 1), (32, 64, 128, 256), groups=4), (3, 128, 128)),
    Drawn(
        "se-resnet", partial(ResNet, BasicBlock, (1, 2, 2, 1), (32, 64, 128, 256), squeeze=True), (3, 96, 96)
    ),
    Drawn("yolo-decoded", partial(YoloDecoded, 160, 16, 20), (3, 160, 160)),
    Drawn("norm-net", NormNet, (3, 96, 96)),
    Drawn(
        "regnet-y",
        partial(ResNet, Bottleneck, (1, 2, 3, 1), (24, 48, 96, 192), groups=8, squeeze=True),
        (3, 128, 128),
    ),
    Drawn("fast-upscaler", partial(FastUpscaler, 32, 8), (1, 48, 48)),
    Drawn("raw-audio", partial(RawAudio, 64), (1, 8000)),
    Drawn("stock-encoder", partial(StockEncoder, 40, 128, 4, 3), (98, 40)),
    Drawn("autoencoder", partial(Autoencoder, 24, 32, 96), (3, 96, 96)),
    Drawn("gated-sound", partial(GatedSound, 32, 6), (1, 4000)),
    Drawn("activations", partial(Activations, 24), (3, 96, 96)),
    Drawn("einsum-attention", partial(EinsumAttention, 64), (3, 96, 96)),
    Drawn("pointnet", PointNet, (1024, 3)),
    Drawn("tcn", partial(TCN, 9, (32, 32, 64, 64)), (9, 256)),
    Drawn("video-net", partial(VideoNet, 16), (3, 8, 56, 56)),
    Drawn("line-reader", LineReader, (1, 16, 96)),
)
# Nothing about estimates was chosen by looking at these. Whoever mends estimates by them moves them up and adds others.
LATER: tuple[Drawn, ...] = (
    Drawn("mobilenet-v1-wake-words", partial(MobileNetV1, 0.25, 2), (3, 96, 96)),
    Drawn("mobilenet-v2-small", partial(MobileNetV2, 0.35), (3, 160, 160)),
    Drawn("anomaly", partial(MLP, (640, 128, 128, 128, 8, 128, 128, 128), 640), (640,)),
)
# Of the published figures of boards; they are predicted, not timed.
PUBLISHED: tuple[Drawn, ...] = (Drawn("mobilenet-v1-224", MobileNetV1, (3, 224, 224)),)


def files(network: Drawn, cache: Path = CACHE) -> Mapping[tuple[str, str], Path]:
    """(format, precision) to the file; what a converter refuses is not there."""
    folder = cache / network.name
    wanted = {(f, p): folder / f"{p}.{f}" for f in FORMATS for p in PRECISIONS}
    if not (folder / "made").exists():
        folder.mkdir(parents=True, exist_ok=True)
        _make(network, wanted)
        (folder / "made").touch()
    return {key: path for key, path in wanted.items() if path.exists()}


def _make(network: Drawn, wanted: Mapping[tuple[str, str], Path]) -> None:
    from edgekit.load import load_candidate
    from edgekit.stages.quantize.apply import calibrate, convert, observe
    from edgekit_converters.cleanup import clean
    from edgekit_converters.errors import LoweringError
    from edgekit_converters.onnx import export_onnx
    from edgekit_converters.tflite import export_tflite

    def drawn(n: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        if len(network.shape) == IMAGE_AXES:
            return (images(n, generator, *network.shape),)
        return (torch.randn(n, *network.shape, generator=generator),)

    torch.manual_seed(0)
    module = settle(network.make(), drawn)
    inputs = drawn(8, torch.Generator().manual_seed(1))
    exported = torch.export.export(module.eval(), (inputs[0][:1],))
    program = load_candidate(exported).program
    cleaned, _ = clean(program)
    observed = observe(cleaned)
    calibrate(observed, [(inputs[0][i : i + 1],) for i in range(len(inputs[0]))])
    # What a converter refuses of the network as it is, it may take of the cleaned one.
    programs = {"int8": (convert(observed),), "float32": (program, cleaned)}
    exporters = {"onnx": export_onnx, "tflite": partial(export_tflite, layout="nhwc")}
    for (format, precision), path in wanted.items():
        for each in programs[precision]:
            try:
                exporters[format](each, path)
                break
            except LoweringError as error:
                print(f"{network.name} {precision} {format}: {error}")
