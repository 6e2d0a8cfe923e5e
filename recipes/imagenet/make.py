"""Writes the recipes of this folder: 5 models x 3 budgets x 2 lengths, so that thirty files say the same thing.

    python recipes/imagenet/make.py

A budget is the exact cost of a uniform model (`qvit cost MODEL --weight-bits W --activation-bits A`), computed here from the
shapes alone. A test holds the files to what this writes: change this file, not them.
"""

from __future__ import annotations

from pathlib import Path

import timm
import torch

from qvit.bits.cost import cost
from qvit.network.convert import quantize
from qvit.spec import FixedBits, Spec

FOLDER = Path(__file__).parent

MODELS = {  # file name: (timm's name, copies of repeated augmentation in DeiT's own training)
    "deit_tiny": ("deit_tiny_patch16_224", 1),
    "deit_small": ("deit_small_patch16_224", 3),
    "deit_base": ("deit_base_patch16_224", 3),
    "swin_tiny": ("swin_tiny_patch4_window7_224", 1),
    "swin_small": ("swin_small_patch4_window7_224.ms_in1k", 1),  # timm's default has seen ImageNet-22k
}

BUDGETS = {  # file name: (weight bits, activation bits, in words)
    "4bit": (4, 4, "uniform 4 bits"),
    "3bit": (3, 3, "uniform 3 bits"),
    "w2a3": (2, 3, "uniform W2A3 (W3A2 costs a little less)"),
}

HEAD = """\
version = 1
seed = 0

[model]
name = "{model}"
pretrained = true

[data]
dataset = "folder"
root = "../../data/imagenet"
train_split = "train"
eval_split = "validation"
"""

MIDDLE = """\
workers = 8

[quantize]
heads = {{ kind = "PerHead" }}

[budget]
gbitops = {gbitops}

"""

FULL = (
    """\
# ImageNet, {model}: head-wise learned bits at the GBitOPs of
# {words}, with the length and augmentation of the paper (arXiv 2201.07703): 300 epochs of fine-tuning
# with DeiT's augmentation, bits locked after 90 %. The published learning rate is 2e-4 for a batch of 512. Put ImageNet's
# two folders under `root`, or use a timm data set name. Not run here: see docs/imagenet.md.
"""
    + HEAD
    + """\
auto_augment = "rand-m9-mstd0.5-inc1"
random_erasing = 0.25
mixup = 0.8
cutmix = 1.0
label_smoothing = 0.1
repeated_augmentation = {copies}
batch_size = 512
"""
    + MIDDLE
    + """\
[fit]
epochs = 300
learning_rate = 2e-4
learning_rate_floor = 0.0
weight_decay = 0.05
clip_gradient = 0.0
lock_at = 0.9
log_every = 100
checkpoint_every = 1000
"""
)

SHORT = (
    """\
# ImageNet, {model}: head-wise learned bits at the GBitOPs of
# {words}, in four epochs on one GPU. The float model is the teacher: its logits and, after GPLQ
# (arXiv 2506.11784), its last features guide the training, so augmentation is light. After GPLQ, too, activations are quantized
# first: weights stay float for one epoch, the bits are final after two. Settings to start from, not tuned ones, and not run
# here: see docs/imagenet.md.
"""
    + HEAD
    + """\
batch_size = 128
"""
    + MIDDLE
    + """\
[fit]
epochs = 4
learning_rate = 5e-5
weight_decay = 0.0
precision = "bf16"
activations_first = 0.25
lock_at = 0.5
distillation = 0.5
features = {{ weight = 1.0, variance = 0.6, batches = 32 }}
log_every = 100
checkpoint_every = 2000
"""
)


def gbitops(model: str, weight_bits: int, activation_bits: int) -> float:
    """Exact cost of a uniform model, a whole number of BitOPs; on the meta device, so that no weights are made."""
    with torch.device("meta"):
        network = timm.create_model(model, pretrained=False)
    spec = Spec(FixedBits(weight_bits), FixedBits(activation_bits))
    return round(cost(quantize(network, spec, quiet=True)).gbitops, 9)


def recipes() -> dict[str, str]:
    """File name -> content."""
    files = {}
    for short_name, (model, copies) in MODELS.items():
        for budget, (weight_bits, activation_bits, words) in BUDGETS.items():
            limit = gbitops(model, weight_bits, activation_bits)
            for suffix, template in (("", FULL), ("_short", SHORT)):
                text = template.format(model=model, words=words, copies=copies, gbitops=limit)
                files[f"{short_name}_{budget}{suffix}.toml"] = text
    return files


def main() -> None:
    """Write the files."""
    files = recipes()
    for name, text in files.items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    print(f"wrote {len(files)} recipes to {FOLDER}")


if __name__ == "__main__":
    main()
