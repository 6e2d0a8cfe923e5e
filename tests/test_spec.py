"""A spec is validated where it is made and goes through JSON unchanged."""

from __future__ import annotations

import json

import pytest

from qvit.settings.values import from_values, to_values
from qvit.spec import (
    FixedBits,
    LearnedBits,
    PerChannel,
    PerHead,
    PerTensor,
    SharedScale,
    SingleRange,
    SingleScale,
    Spec,
)

SPECS = {
    "default": Spec(),
    "uniform": Spec(weights=FixedBits(3), activations=FixedBits(4), heads=PerTensor(), edge=LearnedBits(4, 8, 6.5)),
    "everything": Spec(
        weight_scale=PerChannel(),
        scale=SharedScale(),
        overrides=(("blocks.0.*.weight", FixedBits(8)), ("head.input", LearnedBits(3, 6, 4.0))),
        keep_float=("head", "blocks.1.mlp.*"),
    ),
    "single": Spec(heads=PerHead(), scale=SingleScale()),
    "range": Spec(heads=PerHead(), scale=SingleRange()),
}


@pytest.mark.parametrize("name", SPECS)
def test_round_trip_through_json(name: str) -> None:
    assert from_values(Spec, json.loads(json.dumps(to_values(SPECS[name]))), "spec") == SPECS[name]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"wieghts": {"kind": "FixedBits", "bits": 3}}, r"unknown key wieghts in quantize; known: weights, act"),
        (
            {"weights": {"kind": "Fixed", "bits": 3}},
            r"quantize\.weights\.kind is 'Fixed'; allowed: FixedBits, LearnedBits",
        ),
        ({"weights": {"kind": "FixedBits", "bit": 3}}, r"unknown key bit in quantize\.weights; known: bits"),
        ({"weights": {"kind": "PerHead"}}, r"quantize\.weights\.kind is 'PerHead'; allowed: FixedBits, LearnedBits"),
    ],
)
def test_unknown_words_are_refused(data: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        from_values(Spec, data, "quantize")


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: FixedBits(1), r"FixedBits\.bits is 1; bit-widths go from 2 to 8"),
        (lambda: FixedBits(9), r"FixedBits\.bits is 9"),
        (lambda: FixedBits(3.5), r"FixedBits\.bits is 3\.5; it must be a whole number"),
        (lambda: LearnedBits(1, 8), r"LearnedBits\.low is 1"),
        (lambda: LearnedBits(2, 9), r"LearnedBits\.high is 9"),
        (lambda: LearnedBits(2.5, 8), r"LearnedBits\.low is 2\.5; it must be a whole number"),
        (lambda: LearnedBits(4, 4), r"low must be below high; use FixedBits for one width"),
        (lambda: LearnedBits(2, 4), r"LearnedBits\.start is 5\.0; it must lie in \[2, 4\]"),
        (lambda: Spec(weights=4), r"Spec\.weights is 4; allowed: FixedBits, LearnedBits"),
        (lambda: Spec(heads=PerChannel()), r"Spec\.heads is PerChannel\(\); allowed: PerTensor, PerHead"),
        (lambda: Spec(keep_float="head"), r"Spec\.keep_float is 'head'; it must be a tuple of patterns"),
        (lambda: Spec(overrides=(("head", 4),)), r"Spec\.overrides has \('head', 4\)"),
    ],
)
def test_wrong_values_say_what_is_allowed(make, text: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=text):
        make()
