"""A toy analysis: images and data settings without files, for every test of `analyze` and its parts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qvit.analysis.config import AnalysisConfig
from qvit.analysis.data import AnalysisData
from qvit.analysis.instrument import Instrument
from toy_models import images
from toy_training import toy_data

BATCH = 16
QUICK = AnalysisConfig(bits=(2, 3), images=2 * BATCH, calibration_images=BATCH, site_images=BATCH)


def analysis_data(model: nn.Module, count: int = 2 * BATCH, labelled: bool = True) -> AnalysisData:
    """Batches of random images; the label of an image is the float model's own class, so the float model is always right."""
    pixels = images(model, count)
    with torch.no_grad():
        labels = model(pixels).argmax(1) if labelled else torch.full((count,), -1)
    batches: list[tuple[Tensor, Tensor]] = list(zip(pixels.split(BATCH), labels.split(BATCH), strict=True))
    calibration = [(images(model, BATCH, seed=7), labels[:BATCH])]
    return AnalysisData(calibration, batches, count, BATCH, toy_data().config, None)


def instrument(model: nn.Module, config: AnalysisConfig = QUICK) -> Instrument:
    """The instrument of a toy model."""
    return Instrument(model, analysis_data(model), config)
