"""Every operation of the API, by schemathesis with all of its checks, on a real server with something of everything.

`python -m support.contract_runs --examples 200` runs it for longer.
"""

from __future__ import annotations

import re
from pathlib import Path

from support.contract_runs import run, target


def test_every_operation_answers_as_its_document_says(tmp_path: Path) -> None:
    with target(tmp_path) as server:
        ran = run(server, tmp_path, examples=2, seed=7)
    assert ran.passed, ran.text[-20_000:]
    selected = re.search(r"Selected: (\d+)/(\d+)\s+Tested: (\d+)", ran.text)
    assert selected is not None, ran.text[-4000:]
    assert selected[1] == selected[2] == selected[3]
    generated = re.search(r"(\d+) generated, (\d+) passed", ran.text)
    assert generated is not None, ran.text[-4000:]
    assert int(generated[1]) > 1000
