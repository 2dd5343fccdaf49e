"""Reads what `torch.export.save` wrote, without letting the file run code.

`torch.export.load` unpickles some members with `weights_only=False`, hands size expressions to sympy's
`eval`, and calls whatever function a node of the graph names. So the archive is read first as plain JSON,
and what goes beyond tensors, arithmetic and registered ops needs `trust`.
"""

from __future__ import annotations

import io
import json
import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from edgekit.errors import EdgekitError, UsageError
from edgekit.load.archive import damaged

_TARGET = re.compile(
    r"torch\.ops\.[\w.]+|(_operator|operator|math)\.\w+|torch\.sym_\w+|torch\._sym_\w+|torch\._check\w*"
)
_EXPRESSION = re.compile(r"[\w\s+\-*/().,<>=!&|~%]*")
_QUOTED_SYMBOL = re.compile(r"Symbol\('\w+'")
# What torch's size expressions are built from; sympy evaluates the text with all of Python in reach.
_SIZE_WORD = re.compile(
    r"[suz]\d+|\d\w*|Symbol|Integer|Rational|Float|Add|Mul|Pow|Max|Min|Mod|PythonMod|FloorDiv|CeilDiv|CleanDiv"
    r"|ModularIndexing|IntTrueDiv|FloatTrueDiv|TruncToInt|ToFloat|Piecewise|ExprCondPair|Eq|Ne|Lt|Le|Gt|Ge|And|Or"
    r"|Not|Equality|Unequality|StrictLessThan|LessThan|StrictGreaterThan|GreaterThan|oo|int_oo"
    r"|positive|integer|nonnegative|real|evaluate|precision|True|False|true|false"
)
_OBJECTS = ("custom_obj", "opaque_obj")


def load_exported(path: Path, *, trust: bool) -> torch.export.ExportedProgram:
    """The exported program in `path`, on the CPU.

    Raises:
        UsageError: the file needs trust, or this torch cannot read it.
    """
    texts = _texts(path)
    if not trust:
        for text in texts.values():
            _refuse_code(path, text)
    source: Any = str(path)
    if any(_mentions_gpu(text) for text in texts.values()):
        source = _rewritten(path, texts)
    else:
        source = io.BytesIO(path.read_bytes())
    try:
        with _only_weights(not trust):
            return torch.export.load(source)
    except EdgekitError:
        raise
    except Exception as error:
        raise _unreadable(path, error) from error


def _texts(path: Path) -> dict[str, Any]:
    """JSON members by name."""
    texts: dict[str, Any] = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(".json") and "/extra/" not in name:
                try:
                    texts[name] = json.loads(archive.read(name))
                except (ValueError, RecursionError) as error:
                    raise damaged(path, f"{name}: {error}") from error
    return texts


def _walk(value: Any) -> Iterator[tuple[str, Any]]:
    """Every (key, value) of nested JSON, without recursion: the depth is the file's choice."""
    pending = [value]
    while pending:
        now = pending.pop()
        if isinstance(now, dict):
            yield from now.items()
            pending.extend(now.values())
        elif isinstance(now, list):
            pending.extend(now)


def _refuse_code(path: Path, text: Any) -> None:
    for key, value in _walk(text):
        found = None
        if key == "target" and isinstance(value, str) and not _TARGET.fullmatch(value):
            found = f"a node calls {value}"
        elif key == "expr_str" and not _is_size(str(value)):
            found = f"a size is the expression {str(value)[:80]!r}"
        elif key == "path_name" and str(value).startswith(_OBJECTS):
            found = f"it holds the pickled object {value}"
        elif key == "use_pickle" and value is True:
            found = "it holds pickled tensors of a special class"
        if found:
            raise UsageError(
                f"{path}: the exported program could run code on loading: {found}",
                expected="tensors, arithmetic and registered ops only",
                way_out="Pass --trust if you made the file or trust who did.",
            )


def _is_size(text: str) -> bool:
    bare = _QUOTED_SYMBOL.sub("Symbol(", text)
    return bool(_EXPRESSION.fullmatch(bare)) and all(
        _SIZE_WORD.fullmatch(w) for w in re.findall(r"\w+", bare)
    )


def _mentions_gpu(text: Any) -> bool:
    return any(
        key == "device" and isinstance(v, dict) and v.get("type") not in (None, "cpu")
        for key, v in _walk(text)
    )


def _rewritten(path: Path, texts: dict[str, Any]) -> io.BytesIO:
    """The same archive with every device set to the CPU."""
    for text in texts.values():
        for _, value in _walk(text):
            if isinstance(value, dict) and value.get("type") in ("cuda", "mps", "xpu"):
                value.update(type="cpu", index=None)
    out = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            new.writestr(name, json.dumps(texts[name]) if name in texts else old.read(name))
    out.seek(0)
    return out


@contextmanager
def _only_weights(active: bool) -> Iterator[None]:
    """torch.load inside torch.export.load passes weights_only=False; this variable overrules it."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    if active:
        os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before


def _unreadable(path: Path, error: Exception) -> UsageError:
    text = " ".join(str(error).split())[:300]
    return UsageError(
        f"{path}: torch {torch.__version__} cannot read this exported program: {type(error).__name__}: "
        f"{text}",
        expected="a program saved by torch.export.save, of this torch or an earlier one with the same schema",
        way_out="Export it again with this torch, or install the torch that wrote it.",
    )
