"""Architectures from their definitions, narrow enough that each compresses in seconds.

`ASKED` are the families that every format is promised for, `OTHERS` bring operators that those lack,
`HARDER` stress a lowering.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

# pytest puts tests/ on the path, not the root of the checkout where examples/ lies.
sys.path.append(str(Path(__file__).parents[1]))

from examples.networks.classic import VGG, BasicBlock, Bottleneck, DenseNet, ResNet, SqueezeNet, UNet
from examples.networks.detect import YoloStyle
from examples.networks.mobile import (
    DSCNN,
    Bneck,
    EfficientNetLite,
    MobileNetV1,
    MobileNetV2,
    MobileNetV3Small,
    Stage,
)
from examples.networks.recent import (
    AtrousSegmenter,
    EfficientNetStyle,
    GPTStyle,
    InceptionStyle,
    PointNet,
    RawAudio,
    StockEncoder,
    SwinStyle,
)
from examples.networks.sequence import TCN, ConvBiLSTM, RecurrentClassifier, TextTransformer, TwoStreams
from examples.networks.settle import Inputs, images, settle
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

__all__ = ["ASKED", "BY_NAME", "HARDER", "OTHERS", "ZOO", "ZooModel", "build", "draw", "settle"]


class ZooModel(NamedTuple):
    """An architecture and what it eats.

    `inputs(n, generator)` gives `n` samples as a tuple in the order of `forward`.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: Inputs


def build(model: ZooModel, seed: int = 0) -> nn.Module:
    """The network with settled weights, in evaluation mode; the same at every call."""
    return settle(model.make(), model.inputs, seed)


def draw(model: ZooModel, n: int, seed: int = 1) -> tuple[Tensor, ...]:
    """`n` samples for the network; other seeds give other samples."""
    return model.inputs(n, torch.Generator().manual_seed(seed))


def photo(channels: int, side: int) -> Inputs:
    return lambda n, generator: (images(n, generator, channels, side, side),)


def signal(*shape: int) -> Inputs:
    """Smooth signals: `shape` is (channels, time)."""
    return lambda n, generator: (images(n, generator, shape[0], 1, shape[1])[:, :, 0],)


def frames(n: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    return (images(n, generator, 8, 1, 12)[:, :, 0].transpose(1, 2).contiguous(),)


def mfcc(n: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    return (images(n, generator, 1, 49, 10),)


def table(n: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    return (torch.randn(n, 32, generator=generator),)


def text(n: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    tokens = torch.randint(1, 64, (n, 12), generator=generator)
    lengths = torch.randint(4, 13, (n, 1), generator=generator)
    mask = (torch.arange(12) < lengths).long()
    return tokens * mask, mask


def tokens(n: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    return (torch.randint(0, 64, (n, 12), generator=generator),)


def points(n: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Ellipsoids of random axes, so that clouds differ in shape and not only in noise."""
    axes = 0.3 + torch.rand(n, 1, 3, generator=generator)
    return (axes * torch.randn(n, 48, 3, generator=generator),)


def two_streams(n: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    return images(n, generator, 3, 16, 16), torch.randn(n, 8, generator=generator)


V2_STAGES = (Stage(1, 16, 1, 1), Stage(6, 24, 2, 2), Stage(6, 32, 2, 2))
LITE_STAGES = (Stage(1, 16, 1, 1, 3), Stage(6, 24, 2, 2, 3), Stage(6, 40, 2, 2, 5))
V3_ROWS = (
    Bneck(3, 16, 16, True, nn.ReLU, 2),
    Bneck(3, 72, 24, False, nn.ReLU, 2),
    Bneck(3, 88, 24, False, nn.ReLU, 1),
    Bneck(5, 96, 40, True, nn.Hardswish, 1),
)

ASKED: tuple[ZooModel, ...] = (
    ZooModel("resnet", partial(ResNet, BasicBlock, (1, 1, 1), (8, 16, 24), 10), photo(3, 32)),
    ZooModel("vgg", partial(VGG, (8, 0, 16, 16, 0, 24, 0), 32, 32, 10), photo(3, 32)),
    ZooModel(
        "mobilenet_v1", partial(MobileNetV1, 0.25, 10, ((64, 1), (128, 2), (128, 1), (256, 2))), photo(3, 32)
    ),
    ZooModel("mobilenet_v2", partial(MobileNetV2, 0.5, 10, V2_STAGES, 64), photo(3, 32)),
    ZooModel("mobilenet_v3", partial(MobileNetV3Small, 0.5, 10, V3_ROWS, 48), photo(3, 32)),
    ZooModel("efficientnet_lite", partial(EfficientNetLite, 0.5, 10, LITE_STAGES, 64), photo(3, 32)),
    ZooModel("squeezenet", partial(SqueezeNet, 16, (None, (4, 8), (4, 8), None, (8, 16)), 10), photo(3, 33)),
    ZooModel("densenet", partial(DenseNet, 8, (2, 2), 10), photo(3, 32)),
    ZooModel("unet", partial(UNet, 8, 2, 2), photo(3, 32)),
    ZooModel("yolo_style", partial(YoloStyle, 8, 4), photo(3, 64)),
    ZooModel("ds_cnn", partial(DSCNN, 16, 2), mfcc),
    ZooModel("tcn", partial(TCN, 6, (16, 16, 24), 3, 6), signal(6, 32)),
    ZooModel("lstm", partial(RecurrentClassifier, nn.LSTM, 8, 16, 2, 5), frames),
    ZooModel("gru", partial(RecurrentClassifier, nn.GRU, 8, 16, 1, 5), frames),
    ZooModel("vit", partial(ViT, image=32, patch=8, width=32, depth=2, heads=2, classes=10), photo(3, 32)),
    ZooModel(
        "text_transformer",
        partial(TextTransformer, vocabulary=64, length=16, width=32, depth=2, heads=2, classes=3),
        text,
    ),
    ZooModel("two_streams", partial(TwoStreams, 12, 8, 5), two_streams),
)

OTHERS: tuple[ZooModel, ...] = (
    ZooModel("resnet_bottleneck", partial(ResNet, Bottleneck, (1, 2), (8, 16), 10), photo(3, 32)),
    ZooModel("resnext", partial(ResNet, Bottleneck, (1, 1), (16, 32), 10, groups=4), photo(3, 32)),
    ZooModel(
        "regnet_y", partial(ResNet, Bottleneck, (1, 1), (16, 32), 10, groups=2, squeeze=True), photo(3, 32)
    ),
    ZooModel("convnext", partial(ConvNeXt, (1, 2), (16, 32), 10), photo(3, 32)),
    ZooModel("shufflenet_v2", partial(ShuffleNetV2, (8, 16, 32), (2, 2), 10), photo(3, 32)),
    ZooModel("mlp", partial(MLP, (32, 48, 24), 5), table),
    ZooModel("mlp_mixer", partial(Mixer, 32, 8, 24, 2, 10), photo(3, 32)),
    ZooModel("activations", partial(Activations, 12, 10), photo(3, 24)),
    ZooModel("norms", partial(NormNet, 8), photo(3, 24)),
    ZooModel("autoencoder", partial(Autoencoder, 12, 8, 24), photo(3, 24)),
    ZooModel("einsum_attention", partial(EinsumAttention, 24, 4, 10), photo(3, 24)),
    ZooModel("super_resolution", partial(SuperResolution, 12, 2), photo(1, 16)),
    ZooModel("conv_bilstm", partial(ConvBiLSTM, 10, 16, 12, 8), signal(10, 16)),
)

# Not promised in every format; each must be lowered and proven, or refused with its op and a way out.
HARDER: tuple[ZooModel, ...] = (
    ZooModel("swin_style", partial(SwinStyle, 24, 2, 4, 4, 10), photo(3, 32)),
    ZooModel("gpt_style", partial(GPTStyle, 64, 16, 32, 2, 2), tokens),
    ZooModel("stock_encoder", partial(StockEncoder, 8, 32, 2, 2, 5), frames),
    ZooModel("inception_style", partial(InceptionStyle, 16, 10), photo(3, 32)),
    ZooModel("atrous_segmenter", partial(AtrousSegmenter, 12, 4), photo(3, 32)),
    ZooModel("efficientnet_style", partial(EfficientNetStyle, 16, 10), photo(3, 32)),
    ZooModel("pointnet", partial(PointNet, (16, 32, 48), 6), points),
    ZooModel("raw_audio", partial(RawAudio, 12, 6), signal(1, 400)),
)

ZOO = ASKED + OTHERS + HARDER
BY_NAME = {model.name: model for model in ZOO}
