"""What processor cores can compute at best, and how much of it kernels reach: for devices that nobody calibrated.

Peaks are multiply-accumulates a cycle of one core: for float32, lanes of its vector pipes with fused multiply-add; for
int8, what dot-product instructions give or, without them, widening multiplications with their additions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from edgekit.bench.predict.ops import MACS, Op
from edgekit.errors import UsageError
from edgekit_devices import Cluster, Profile

# Share of a core's peak that stays where instructions run in order and one multiplication over 128 bits fills a cycle,
# so that loads have no place beside it.
IN_ORDER: Final = 0.6


@dataclass(frozen=True, slots=True)
class Core:
    """Multiply-accumulates a cycle at best, by precision, and the share of them that kernels can reach."""

    float32: float
    int8: float
    reach: float = 1.0

    def macs(self, precision: str) -> float:
        """Of one cycle."""
        return self.reach * (self.int8 if precision == "int8" else self.float32)


CORES: Final[Mapping[str, Core]] = {
    "cortex-a7": Core(1, 2),
    "cortex-a53": Core(4, 8, IN_ORDER),
    "cortex-a57": Core(4, 8),
    "cortex-a72": Core(4, 8),
    "cortex-a73": Core(4, 8),
    "cortex-a75": Core(4, 8),
    "carmel": Core(8, 16),
    "cortex-a76": Core(8, 32),
    "cortex-a78": Core(8, 32),
    "cortex-a715": Core(8, 32),
    "cortex-a720": Core(8, 32),
    "cortex-a510": Core(4, 16, IN_ORDER),
    "cortex-a520": Core(4, 16, IN_ORDER),
    "cortex-x3": Core(16, 64),
    "cortex-x4": Core(16, 64),
    "apple-performance": Core(16, 64),
    "apple-efficiency": Core(8, 32),
    "x86-avx2": Core(16, 24),
    "x86-avx512-vnni": Core(32, 128),
}

# Share of the peak that kernels reach; what is common to all of them is corrected by published figures.
EFFICIENCY: Final[Mapping[str, float]] = {
    "conv": 0.6,
    "transposed": 0.3,
    "grouped": 0.3,
    "volume": 0.1,
    "linear": 0.5,
    "matmul": 0.4,
    "einsum": 0.2,
    "recurrent": 0.15,
    "depthwise": 0.2,
}
# Elements that one core gets through in a cycle.
ELEMENTS: Final[Mapping[str, float]] = {
    "add": 1.5,
    "mul": 1.5,
    "clip": 3.0,
    "prelu": 1.0,
    "choose": 0.5,
    "reduce": 2.0,
    "collapse": 1.0,
    "convert": 1.0,
    "copy": 8.0,
    "move": 2.0,
    "blocks": 2.0,
    "slice": 0.5,
    "nearest": 1.0,
    "repeat": 1.0,
    "pad": 1.0,
    "mirror": 0.1,
    "shuffle": 0.5,
    "transpose": 0.5,
    "pool": 1.5,
    "average": 1.5,
    "strip": 1.0,
    "window": 0.1,
    "resize": 0.5,
    "activation": 0.25,
    "gelu": 0.15,
    "softplus": 0.05,
    "elu": 0.15,
    "norm": 0.3,
    "softmax": 0.15,
}
# A core more brings less than the one before it.
PARALLEL: Final = 0.9
# Of what a data sheet says of memory, this much comes in.
BANDWIDTH: Final = 0.5
# Cycles that each operator and each call cost beside their work.
OP_CYCLES, CALL_CYCLES = 6_000, 40_000


def class_ms(op: Op, profile: Profile, threads: int) -> float:
    """Milliseconds of an operator: what it computes or what it moves, whichever takes longer.

    Args:
        op: the operator.
        profile: with processors.
        threads: one on each of the fastest cores.
    """
    used = fastest(profile, threads)
    spread = PARALLEL ** (threads.bit_length() - 1) if threads > 1 else 1.0
    if op.kind in MACS:
        per_ms = sum(_core(c).macs(op.precision) * c.ghz for c in used) * 1e6 * EFFICIENCY[op.kind]
    else:
        wide = 2.0 if op.precision == "int8" else 1.0
        per_ms = sum(c.ghz for c in used) * 1e6 * ELEMENTS[op.kind] * wide
    computes = op.work / (per_ms * spread)
    return max(computes, _far_bytes(op, used, profile) / _bandwidth(profile)) + OP_CYCLES / _cycles(used)


def class_call_ms(profile: Profile, threads: int) -> float:
    """Milliseconds of a call that computes nothing."""
    return CALL_CYCLES / _cycles(fastest(profile, threads))


def fastest(profile: Profile, threads: int) -> tuple[Cluster, ...]:
    """The cores that the threads run on, one entry each; no more than there are."""
    single = [cluster for cluster in profile.processors for _ in range(cluster.count)]
    single.sort(key=lambda cluster: -_core(cluster).float32 * cluster.ghz)
    return tuple(single[:threads])


def _far_bytes(op: Op, used: Sequence[Cluster], profile: Profile) -> int:
    """Bytes from main memory: weights, as a network passes between two uses, and activations too large for caches."""
    near = max([profile.l3_kb or 0, *(cluster.l2_kb or 256 for cluster in used)]) * 1024
    return op.weight_bytes + (op.moved_bytes if op.moved_bytes > near else 0)


def _bandwidth(profile: Profile) -> float:
    """Bytes a millisecond."""
    return (profile.bandwidth_gb_s or 5.0) * 1e6 * BANDWIDTH


def _cycles(used: Sequence[Cluster]) -> float:
    """Of the fastest core in a millisecond."""
    return max(cluster.ghz for cluster in used) * 1e6


def _core(cluster: Cluster) -> Core:
    found = CORES.get(cluster.core)
    if found is None:
        raise UsageError(
            f"processor core {cluster.core!r}: its peak is not known",
            expected=f"one of {', '.join(CORES)}",
            way_out="Calibrate on the device: edgekit bench calibrate --device ssh://user@host -o profile.toml",
        )
    return found
