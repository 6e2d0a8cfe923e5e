"""Cached prefixes give the very numbers of a whole forward pass, for every family."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch

from qvit.analysis.components import select
from qvit.analysis.gates import open_gates
from qvit.analysis.instrument import Instrument
from qvit.analysis.prefix import finish, first_step, inputs
from toy_analysis import instrument
from toy_models import FAMILIES, images


@lru_cache
def of(family: str) -> Instrument:
    return instrument(FAMILIES[family]())


@pytest.mark.parametrize("family", FAMILIES)
def test_each_quantizer_is_in_one_step(family: str) -> None:
    found = of(family)
    assert all(sum(step.holds(name) for step in found.chain) == 1 for name in found.gates)


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_to_the_whole_network_from_every_step(family: str) -> None:
    """All gates closed, and all open."""
    found = of(family)
    pixels = images(found.model, 2)
    for selection in ({}, select(found.sites)):
        open_gates(found.gates, selection)
        with torch.no_grad():
            whole = found.model(pixels)
        cached = inputs(found.chain, pixels)
        assert len(cached) == len(found.chain) + 1
        for start in range(len(cached)):
            assert torch.equal(finish(found.chain, cached, start), whole)


@pytest.mark.parametrize("family", ["deit_distilled", pytest.param("swin_padded", marks=pytest.mark.slow)])
@pytest.mark.parametrize("company", [False, True], ids=["alone", "all but one"])
def test_equal_for_every_subject(family: str, company: bool) -> None:
    """A variant from the step of its first change on is the variant from the images on; and it does change something."""
    found = of(family)
    pixels = images(found.model, 2)
    open_gates(found.gates, select(found.sites) if company else {})
    cached = inputs(found.chain, pixels)
    for subject in found.subjects:
        chosen = set(found.sites) - set(subject.sites) if company else subject.sites
        open_gates(found.gates, select(chosen))
        start = first_step(found.chain, subject.selection)
        with torch.no_grad():
            whole = found.model(pixels)
        assert torch.equal(finish(found.chain, cached, start), whole), subject
        assert not torch.equal(cached[-1], whole), subject
        assert torch.equal(finish(found.chain, cached, 0), whole)


def test_the_first_step_of_nothing_is_behind_the_last() -> None:
    chain = of("vit").chain
    assert first_step(chain, []) == len(chain)
    assert first_step(chain, ["head.weight", "blocks.1.attn.q"]) == 2
