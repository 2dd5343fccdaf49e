"""Which rule follows the axes through which operation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from edgekit.stages.prune import convolutions, norms, parts, products, recurrent, reductions, shapes
from edgekit.stages.prune.basics import Rule

RULES: Final[Mapping[str, Rule]] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), convolutions.convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
                    convolutions.transposed_convolution),
    "linear": products.linear,
    **dict.fromkeys(("mm", "bmm", "matmul"), products.product),
    **dict.fromkeys(("addmm", "baddbmm"), products.added_product),
    "einsum": products.einsum,
    "scaled_dot_product_attention": products.attention,
    "batch_norm": norms.batch_norm,
    "instance_norm": norms.instance_norm,
    **dict.fromkeys(("layer_norm", "rms_norm"), norms.layer_norm),
    "group_norm": norms.group_norm,
    "prelu": norms.prelu,
    "embedding": norms.embedding,
    **dict.fromkeys(recurrent.GATES, recurrent.recurrent),
    **dict.fromkeys(recurrent.CELLS, recurrent.cell),
    **dict.fromkeys(
        ("dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout", "native_dropout", "clone",
         "contiguous", "alias", "detach", "to", "_to_copy", "lift_fresh_copy", "type_as", "zeros_like", "ones_like",
         "full_like", "empty_like", "rand_like", "randn_like"),
        shapes.unchanged,
    ),
    **dict.fromkeys(
        ("reshape", "view", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "view_copy", "ravel"),
        shapes.reshape,
    ),
    "permute": shapes.permute,
    **dict.fromkeys(("transpose", "t", "swapaxes", "swapdims"), shapes.transpose),
    **dict.fromkeys(("mT", "adjoint"), shapes.matrix_transpose),
    "numpy_T": shapes.reversed_axes,
    **dict.fromkeys(("movedim", "moveaxis"), shapes.move_axes),
    **dict.fromkeys(("expand", "broadcast_to"), shapes.expand),
    "expand_as": shapes.expand_as,
    **dict.fromkeys(("repeat", "tile"), shapes.tile),
    "repeat_interleave": shapes.repeat_interleave,
    **dict.fromkeys(("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty"),
                    shapes.filled),
    "pixel_shuffle": shapes.pixel_shuffle,
    "pixel_unshuffle": shapes.pixel_unshuffle,
    "im2col": shapes.patches,
    "col2im": shapes.from_patches,
    **dict.fromkeys(("cat", "concat", "concatenate"), parts.concatenate),
    "stack": parts.stack,
    "slice": parts.cut_slice,
    "narrow": parts.narrow,
    "select": parts.select,
    **dict.fromkeys(("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk"),
                    parts.split),
    "unbind": parts.unbind,
    "flip": parts.flip,
    "roll": parts.roll,
    **dict.fromkeys(("tril", "triu"), parts.triangle),
    "index": parts.index,
    "index_select": parts.index_select,
    **dict.fromkeys(("pad", "constant_pad_nd"), parts.pad),
    "glu": parts.glu,
    "channel_shuffle": parts.channel_shuffle,
    **dict.fromkeys(
        ("max_pool1d", "max_pool2d", "max_pool3d", "max_pool1d_with_indices", "max_pool2d_with_indices",
         "max_pool3d_with_indices", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d",
         "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d",
         "adaptive_max_pool3d", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d",
         "_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "upsample_linear1d",
         "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d", "_upsample_bilinear2d_aa",
         "_upsample_bicubic2d_aa", "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d"),
        reductions.pooled,
    ),
    **dict.fromkeys(("grid_sampler", "grid_sampler_2d", "grid_sampler_3d"), reductions.sampled),
    **dict.fromkeys(("mean", "var", "std", "amax", "amin", "var_mean", "std_mean", "linalg_vector_norm", "norm"),
                    reductions.mean),
    **dict.fromkeys(("sum", "prod", "logsumexp", "any", "all", "argmax", "argmin"), reductions.total),
    **dict.fromkeys(("max", "min"), reductions.extreme),
    **dict.fromkeys(("softmax", "_softmax", "log_softmax", "_log_softmax", "softmin", "cumsum", "cumprod",
                     "sort", "topk"), reductions.along),
}  # fmt: skip
"""Operation of ATen to its rule."""

# Pointwise operations that torch does not tag as such.
POINTWISE: Final = frozenset({"hardswish", "log_sigmoid", "floor_divide", "masked_fill", "where"})
# Results that are numbers and not tensors.
NUMBERS: Final = frozenset({"sym_size", "numel", "item", "_local_scalar_dense", "sym_numel"})
