"""A whole run on a few digits through the command line: float row, uniform row, head-wise row. The fixture `done` holds it."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from qvit.cli import main
from qvit.data.digits import open_digits

RECIPE = """
uniform_baseline = 3
calibration = 32

[model]
name = "vit_tiny_patch16_224"
arguments = { img_size = 28, patch_size = 14, embed_dim = 16, depth = 1, num_heads = 2, num_classes = 10 }

[train_float]
epochs = 0.5
learning_rate = 2e-3

[data]
dataset = "folder"
root = "digits"
mean = [0.13, 0.13, 0.13]
std = [0.31, 0.31, 0.31]
crop = 1.0
train_crop = "pad"
flip = 0.0
batch_size = 32
eval_batch_size = 32
cache_decoded = true

[budget]
gbitops = GBITOPS

[fit]
epochs = 2
log_every = 1
distillation = 0.5
cache_teacher = true
allocation = { kind = "Lagrangian", every = 2, warm_up = 2 }
"""

UNIFORM3 = 0.0025641279999999997  # GBitOPs of this model at 3/3

FIELDS = {
    *(
        "schema",
        "model",
        "method",
        "seed",
        "top1",
        "top1_float",
        "images",
        "gbitops",
        "budget_gbitops",
        "bits",
        "epochs",
    ),
    *("average_weight_bits", "average_activation_bits", "images_per_second", "artifact", "versions"),
}
"""What every result.json has."""


def make_run(folder: Path) -> tuple[Path, Path]:
    """(recipe, run directory) of a finished run."""
    for split, count in (("train", 16), ("validation", 8)):
        source = open_digits(split)
        seen: dict[int, int] = {}
        for index in range(len(source)):
            pixels, label = source.read(index)
            seen[label] = seen.get(label, 0) + 1
            if seen[label] <= count:
                target = folder / "digits" / split / str(label)
                target.mkdir(parents=True, exist_ok=True)
                (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(target / f"{index}.png")
    recipe = folder / "tiny.toml"
    recipe.write_text(RECIPE.replace("GBITOPS", repr(UNIFORM3)))
    assert main(["run", str(recipe), "--out", str(folder / "run"), "--json", str(folder / "out.json")]) == 0
    return recipe, folder / "run"
