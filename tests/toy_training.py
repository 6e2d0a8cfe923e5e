"""A toy training run for every test of fit: 96 random images of 5 learnable classes, 6 batches of 16 to an epoch.

Everything that draws random numbers in a real run is on: augmentation, mixup, dropout, drop path. `toy_run` builds all of
it anew on each call, as a process that was killed and started again would.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from qvit.bits.allocate import Lagrangian
from qvit.bits.budget import Budget
from qvit.bits.cost import cost
from qvit.calibration.calibrate import calibrate
from qvit.data import DataConfig, EpochOrder, SeededDataset
from qvit.data.augment import train_transform
from qvit.data.sources import ArraySource
from qvit.network.convert import quantize
from qvit.spec import Spec
from qvit.training.fit import fit
from qvit.training.fit_config import FitConfig
from qvit.training.trainer import FitResult
from toy_models import uniform, vit

BATCH, IMAGES, CLASSES = 16, 96, 5
QUICK = Lagrangian(every=2, warm_up=1)
SHORT = FitConfig(epochs=0.5, log_every=1, allocation=Lagrangian(every=1, warm_up=2))  # 3 steps, lock after 2


@dataclass(frozen=True)
class ToyData:
    """What `open_data` gives, without files."""

    config: DataConfig
    train: DataLoader
    order: EpochOrder
    eval: list[tuple[Tensor, Tensor]]


def toy_data(seed: int = 0, workers: int = 0, **changes: object) -> ToyData:
    """Class patterns plus noise as uint8 images (96, 16, 16, 3), cropped and flipped."""
    generator = np.random.default_rng(5)
    labels = np.arange(IMAGES) % CLASSES
    patterns = generator.integers(40, 216, (CLASSES, 16, 16, 3))
    pixels = np.clip(patterns[labels] + generator.normal(0, 30, (IMAGES, 16, 16, 3)), 0, 255).astype(np.uint8)
    settings = {
        "dataset": "digits",
        "image_size": 16,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.25, 0.25, 0.25),
        "crop": 1.0,
        "crop_mode": "center",
        "interpolation": "bilinear",
        "num_classes": CLASSES,
        "train_crop": "pad",
        "pad": 1,
        "batch_size": BATCH,
        "mixup": 0.2,
    }
    config = DataConfig(**{**settings, **changes})  # type: ignore[arg-type]
    source = ArraySource(pixels, labels.tolist(), tuple("abcde"))
    order = EpochOrder(IMAGES, config.batch_size, seed, shuffle=True, drop_last=True)
    loader = DataLoader(
        SeededDataset(source, train_transform(config), seed, CLASSES), batch_sampler=order, num_workers=workers
    )
    values = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25
    return ToyData(config, loader, order, list(zip(values.split(32), torch.from_numpy(labels).split(32), strict=True)))


def toy_model(spec: Spec | None = None, **kwargs: object) -> nn.Module:
    """A toy ViT of one block with dropout and drop path, quantized (head-wise learned bits) and calibrated on toy data."""
    model = quantize(
        vit(**{"depth": 1, "drop_path_rate": 0.1, "proj_drop_rate": 0.1, **kwargs}), spec or Spec(), quiet=True
    )
    calibrate(model, [images for images, _ in toy_data().eval])
    return model


def three_bits() -> Budget:
    """What a uniform 3-bit toy model of one block costs."""
    return Budget(gbitops=cost(quantize(vit(depth=1), uniform(3), quiet=True)).gbitops)


def toy_run(
    config: FitConfig,
    run: Path | None = None,
    model: nn.Module | None = None,
    data: ToyData | None = None,
    **arguments: object,
) -> tuple[nn.Module, FitResult]:
    """fit on the toy model at the cost of uniform 3 bits; returns the model and the result."""
    model = model if model is not None else toy_model()
    data = data or toy_data(config.seed)
    given = {"budget": three_bits(), "evaluation": data.eval, "quiet": True, **arguments}
    result = fit(model, data.train, config=config, order=data.order, data=data.config, run=run, **given)  # type: ignore[arg-type]
    return model, result


def same_state(left: nn.Module, right: nn.Module) -> list[str]:
    """Names of tensors of the state_dicts that are not equal bit for bit."""
    mine, other = left.state_dict(), right.state_dict()
    assert mine.keys() == other.keys()
    return [name for name, value in mine.items() if not torch.equal(value, other[name])]
