"""The loop of docs/unattended.md as it stands there, around a `qvit` that ends as it is told."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from paths import ROOT

DOCS = (ROOT / "docs" / "unattended.md").read_text(encoding="utf-8")
QVIT = """#!/bin/sh
echo "$@" >> "$0.calls"
code=$(head -n 1 "$0.codes")
sed -i 1d "$0.codes"
exit "$code"
"""


@pytest.mark.parametrize(
    ("codes", "calls", "last"),
    [((75, 143, 137, 0), 4, 0), ((0,), 1, 0), ((75, 74, 0), 2, 74), ((2, 0), 1, 2), ((130, 0), 1, 130)],
    ids=["stopped-and-killed", "finished", "disk-full", "mend", "ctrl-c"],
)
def test_the_loop(codes: tuple[int, ...], calls: int, last: int, tmp_path: Path) -> None:
    (loop,) = re.findall(r"```bash\n(.*?)```", DOCS, flags=re.DOTALL)
    assert "sleep 5" in loop
    fake = tmp_path / "qvit"
    fake.write_text(QVIT)
    fake.chmod(0o755)
    (tmp_path / "qvit.codes").write_text("".join(f"{code}\n" for code in codes))
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", loop.replace("sleep 5", "sleep 0")], env=environment, check=False, capture_output=True
    )
    assert done.returncode == last
    expected = ["run recipes/demo.toml --out runs/demo --resume"] * calls
    assert (tmp_path / "qvit.calls").read_text().splitlines() == expected
