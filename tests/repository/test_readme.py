"""The README's Python runs: with a small model, a folder of digits and one epoch in the places of its large ones."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from paths import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
SMALL = (
    ('"deit_tiny_patch16_224", pretrained=True', '"vit_tiny_patch16_224", **ARGUMENTS'),
    ('DataConfig(root="imagenet")', 'DataConfig(root="digits", batch_size=32, eval_batch_size=32, workers=0)'),
    ("epochs=30", "epochs=1"),
)
ARGUMENTS = {"img_size": 28, "patch_size": 14, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 10}


def test_ten_lines(done: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "digits").symlink_to(done[0].parent / "digits")
    monkeypatch.chdir(tmp_path)
    learn, use = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    for large, small in SMALL:
        assert large in learn
        learn = learn.replace(large, small)
    names = {"ARGUMENTS": ARGUMENTS, "images": np.zeros((2, 3, 28, 28), np.float32)}
    exec(learn, names)
    exec(use, names)
    assert names["logits"].shape == (2, 10)  # type: ignore[union-attr]
