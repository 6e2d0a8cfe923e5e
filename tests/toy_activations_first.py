"""Toy runs that begin with float weights: an epoch has 6 steps, the stage ends after step 3, the bits are final after step 4."""

from __future__ import annotations

import copy
from functools import cache

import torch
from torch import Tensor, nn

from qvit.quantizers.quantizer import Quantizer, named_quantizers
from qvit.spec import Spec
from qvit.training.fit_config import FitConfig
from toy_training import QUICK, toy_model

SWITCH, LOCK = 3, 4
CONFIG = FitConfig(epochs=1, activations_first=SWITCH / 6, lock_at=LOCK / 6, log_every=1, allocation=QUICK)


@cache
def _calibrated(spec: Spec) -> nn.Module:
    return toy_model(spec)


def fresh(spec: Spec | None = None) -> nn.Module:
    """A toy model of its own; each kind is calibrated once."""
    return copy.deepcopy(_calibrated(spec or Spec()))


def weights_of(model: nn.Module) -> dict[str, Quantizer]:
    return {name: q for name, q in named_quantizers(model).items() if not q.batched}


def banks(model: nn.Module, batched: bool) -> dict[str, Tensor]:
    found = {name: q.log_scale for name, q in named_quantizers(model).items() if q.batched == batched}
    return {name: bank.detach().clone() for name, bank in found.items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> set[str]:
    return {name for name, value in left.items() if torch.equal(value, right[name])}
