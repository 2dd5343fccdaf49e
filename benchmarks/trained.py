"""Networks trained on CIFAR-10 for a benchmark; weights and every epoch are kept in `.cache`."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import torch
import torch.nn.functional as F
from examples.networks.mobile import MobileNetV2, MobileNetV3Small
from examples.networks.vision import ViT
from torch import Tensor, nn

from benchmarks.data_cifar10 import CACHE, Cifar10, normalise
from edgekit.inputs import Training
from edgekit.load import load_candidate
from edgekit.stages.train.augment import Moves
from edgekit.stages.train.device import device_for
from edgekit.stages.train.fit import fit
from edgekit.stages.train.schedule import ADAMW, SGD, Schedule
from edgekit.stages.train.trainable import op_names, to_program, trainable
from edgekit_converters.program import Program

IMAGE: Final = (1, 3, 32, 32)
BATCH: Final = 128


def mobilenet_v2() -> nn.Module:
    """For 32 × 32: half the resolution after the first layer, and 24 channels keep it."""
    stages = tuple(stage._replace(stride=1) if stage.channels == 24 else stage for stage in MobileNetV2.full)
    return MobileNetV2(classes=10, stages=stages)


def mobilenet_v3_small() -> nn.Module:
    """For 32 × 32: the first two layers keep the resolution, the last maps are 4 × 4."""
    first, *rest = MobileNetV3Small.full
    module = MobileNetV3Small(classes=10, rows=(first._replace(stride=1), *rest))
    stem = module.features[0][0]
    assert isinstance(stem, nn.Conv2d)
    stem.stride = (1, 1)
    return module


def vit() -> nn.Module:
    """For 32 × 32: 64 patches."""
    return ViT(image=32, patch=4, width=128, depth=4, heads=4, classes=10)


NETWORKS: Mapping[str, Callable[[], nn.Module]] = MappingProxyType(
    {"mobilenet-v2": mobilenet_v2, "mobilenet-v3-small": mobilenet_v3_small, "vit": vit}
)


def samples_of(images: Cifar10) -> Training:
    """Images to train on, normalised as they are drawn."""

    def batches(order: Any, size: int) -> Iterator[tuple[tuple[Any, ...], Any]]:
        for i in range(0, len(order), size):
            rows = order[i : i + size]
            yield (normalise(images.x[rows]),), images.y[rows]

    return Training(len(images.y), True, batches, hashlib.sha256(images.x.tobytes()).hexdigest())


def trained(name: str, train: Cifar10, apart: Cifar10, epochs: int, device: str = "auto") -> nn.Module:
    """A float network; read from the cache where it has been trained before.

    Args:
        name: in `NETWORKS`.
        train: images to train on.
        apart: images that choose the epoch.
        epochs: to train for.
        device: "auto", "cpu" or "cuda".
    """
    path = CACHE / f"{name}-{len(train.y)}-{epochs}.pt"
    torch.manual_seed(0)
    module = NETWORKS[name]().eval()
    if not path.exists():
        program = load_candidate(module, input_shapes=[IMAGE]).program
        fitted = _fitted(program, train, apart, epochs, path.with_suffix(".state"), device)
        torch.save(fitted.graph.state_dict(), path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)
    # A captured network has no count of batches.
    module.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), strict=False)
    return module


def _fitted(
    program: Program, train: Cifar10, apart: Cifar10, epochs: int, checkpoint: Path, device: str
) -> Program:
    place = device_for(device)
    network = trainable(program, (), place).to(memory_format=torch.channels_last)
    convolutional = "conv2d" in (ops := op_names(network)) and "layer_norm" not in ops
    schedule = Schedule(
        epochs=epochs,
        batch_size=BATCH,
        optimizer=SGD if convolutional else ADAMW,
        learning_rate=0.1 if convolutional else 1e-3,
        precision="bfloat16",
        device=place,
        channels_last=True,
    )
    images, labels = torch.from_numpy(normalise(apart.x)), apart.y

    def judge(student: nn.Module) -> float:
        answers = [student(part.to(place))[0][0].argmax(1).cpu() for part in images.split(256)]
        return float((torch.cat(answers).numpy() == labels).mean())

    def loss(student: nn.Module, inputs: tuple[Tensor, ...], truth: Tensor | None) -> Tensor:
        assert truth is not None
        return F.cross_entropy(student(*inputs)[0][0].float(), truth, label_smoothing=0.1)

    fit(
        network,
        objective=loss,
        training=samples_of(train),
        judge=judge,
        higher_is_better=True,
        schedule=schedule,
        checkpoint=checkpoint,
        step=tell,
        augment=Moves(((2, 3),), flip=True, shift=True),
        metric="top1",
    )
    return to_program(network, program)


def tell(message: str) -> None:
    """Progress, one line."""
    print(f"\r\033[K{message}", end="", file=sys.stderr, flush=True)
