"""Borrowing coremltools: imported on first use, silent, and left as it was found."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from edgekit_converters.errors import LoweringError


def import_coremltools() -> Any:
    """Imports coremltools without its version chatter.

    Returns:
        The module.

    Raises:
        LoweringError: it is not installed.
    """
    with _muted():
        try:
            import coremltools
        except ImportError as error:
            raise LoweringError(
                format="coreml",
                op="the model",
                where="",
                why=f"coremltools cannot be imported ({error})",
                way_out="Install it with `pip install 'edgekit[coreml]'`, or leave coreml out of --format.",
            ) from error
    return coremltools


@contextmanager
def borrowed(conversions: Mapping[str, Callable[..., None]]) -> Iterator[Any]:
    """Lends coremltools with our torch-op conversions in its registry.

    The registry, the progress bars, the log level and the name counters are process-wide; all are put back,
    so that the user's own use of coremltools is not changed. The counters start at zero, which makes the
    names in a package independent of what was converted before.

    Args:
        conversions: torch op as coremltools spells it (`lstm.input`) to its conversion.

    Yields:
        The coremltools module.
    """
    coremltools = import_coremltools()
    from coremltools.converters.mil.frontend.torch import ops
    from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY
    from coremltools.converters.mil.mil import Builder
    from coremltools.converters.mil.mil.passes import pass_pipeline

    registry = _TORCH_OPS_REGISTRY.name_to_func_mapping
    kept_registry, kept_names = dict(registry), dict(Builder.name_count)
    kept_bars = ops._tqdm, pass_pipeline.tqdm
    registry.update(conversions)
    Builder.name_count.clear()
    ops._tqdm = pass_pipeline.tqdm = _no_progress_bar
    try:
        with _muted():
            yield coremltools
    finally:
        registry.clear()
        registry.update(kept_registry)
        Builder.name_count.clear()
        Builder.name_count.update(kept_names)
        ops._tqdm, pass_pipeline.tqdm = kept_bars


def _no_progress_bar(items: Iterable[Any], **_: object) -> Iterable[Any]:
    return items


@contextmanager
def _muted() -> Iterator[None]:
    logger = logging.getLogger("coremltools")
    level = logger.level
    # Failures reach the user as LoweringError; what the library logs beside repeats it without a way out.
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
