"""Paired differences: the closed form, the gain over unpaired intervals, ties and errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvit.evaluation.paired import paired

OUTCOMES = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=60)


def test_hand_made_example() -> None:
    """100 images: 5 lost, 2 won, 93 alike. mean = 3 / 100, mean of squares = 7 / 100."""
    first = np.array([True] * 5 + [False] * 2 + [True] * 93)
    second = np.array([False] * 5 + [True] * 2 + [True] * 93)
    found = paired(first, second)
    variance = (7 / 100 - (3 / 100) ** 2) * 100 / 99
    assert found.difference == pytest.approx(3.0)
    assert found.half_width == pytest.approx(100 * 1.96 * math.sqrt(variance / 100))
    assert (found.images, found.is_tie) == (100, True)
    assert not paired(first, np.concatenate([np.zeros(20, bool), second[20:]])).is_tie


@given(OUTCOMES)
def test_swapping_the_two_changes_the_sign_alone(pairs: list[tuple[bool, bool]]) -> None:
    first, second = np.array(pairs).T
    one, other = paired(first, second), paired(second, first)
    assert one.difference == -other.difference == pytest.approx(100 * (first.mean() - second.mean()))
    assert one.half_width == other.half_width


def test_pairing_is_worth_it() -> None:
    """The same images wrong: the paired interval is a tenth of that of two separate accuracies."""
    first = np.arange(2000) % 4 > 0
    second = first & (np.arange(2000) % 400 > 1)
    separate = 196 * math.sqrt((first.var() + second.var()) / 2000)
    assert paired(first, second).half_width < 0.2 * separate


@pytest.mark.parametrize(("left", "right"), [((3,), (4,)), ((2, 2), (2, 2)), ((1,), (1,))])
def test_errors(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    with pytest.raises(
        ValueError, match=r"paired outcomes have the shapes \(.*; give two vectors over the same images"
    ):
        paired(np.zeros(left, bool), np.zeros(right, bool))
