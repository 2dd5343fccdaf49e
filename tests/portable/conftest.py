"""Where the bundles are: carried over from a workbench, or made by the one that is here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder that `tests.portable.make` wrote; nobody writes there."""
    if carried := os.environ.get("EDGEKIT_MADE"):
        return Path(carried)
    from tests.portable.make import make

    return make(tmp_path_factory.mktemp("portable") / "made")
