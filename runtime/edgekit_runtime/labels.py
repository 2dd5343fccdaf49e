"""What a device is called by its fleet: labels such as region, given here or set on the server. Standard library only.

Labels only choose among the rules that are signed; none of them makes a device run what the fleet did not sign.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from edgekit_runtime.cohorts import MAX_VALUE, check_name
from edgekit_runtime.disk import Disk, replace
from edgekit_runtime.strict_json import UNPRINTABLE, ContractError, Fields, parse, show

SCHEMA: Final = 1
MAX_LABELS: Final = 32
MAX_FILE_BYTES: Final = 64 << 10
FILE: Final = "labels.json"

Labels = Mapping[str, str]
"""Name to value."""


def read_labels(value: object, path: str) -> dict[str, str]:
    """Labels of a document: at most 32, of at most 128 characters each.

    Raises:
        ContractError: they are none; the error names the label.
    """
    if not isinstance(value, dict):
        raise ContractError(path, show(value), "an object of names and values")
    if len(value) > MAX_LABELS:
        raise ContractError(path, f"{len(value)} labels", f"at most {MAX_LABELS}")
    for name, text in value.items():
        check_name(path, name)
        if not isinstance(text, str) or len(text) > MAX_VALUE or UNPRINTABLE.search(text):
            raise ContractError(f"{path}.{name}", show(text), f"one line of at most {MAX_VALUE} characters")
    return dict(value)


def read_label(text: str) -> tuple[str, str]:
    """A label as people give it, `region=eu`.

    Raises:
        ContractError: it is none.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise ContractError("label", show(text), "a name and a value, such as region=eu")
    ((found, said),) = read_labels({name.strip(): value.strip()}, "label").items()
    return found, said


def load(store: Path) -> dict[str, str]:
    """Labels that the server set, none where they cannot be read: the next answer brings them again.

    Args:
        store: folder of the versions.
    """
    try:
        with (store / FILE).open("rb") as file:
            tree = Fields(parse(file.read(MAX_FILE_BYTES)), "", required=("schema", "labels"))
        return read_labels(tree.take("labels"), "labels") if tree.whole("schema") == SCHEMA else {}
    except (OSError, ContractError):
        return {}


def keep(disk: Disk, store: Path, labels: Labels) -> None:
    """Keep labels that the server set; what is there already is not written again.

    Args:
        disk: to write to.
        store: folder of the versions.
        labels: all of them.

    Raises:
        ContractError: they are none.
        OSError: the disk is full, or cannot be written; those before hold.
    """
    checked = read_labels(dict(labels), "labels")
    path = store / FILE
    if checked == load(store) and path.exists():
        return
    document = json.dumps({"schema": SCHEMA, "labels": checked}, sort_keys=True, indent=1) + "\n"
    replace(disk, path, document.encode())
