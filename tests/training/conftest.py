"""What several tests of training watch."""

from __future__ import annotations

import pytest
from torch import nn

from qvit.training.activations_first import float_weights


@pytest.fixture
def float_passes(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """One entry for each time that a model's weights became float."""
    entered: list[nn.Module] = []
    monkeypatch.setattr(
        "qvit.training.activations_first.float_weights", lambda model: entered.append(model) or float_weights(model)
    )
    return entered
