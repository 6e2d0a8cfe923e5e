"""docs/recipe.md: in step with the code, and every field of a recipe is described."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from make_recipe_page import PAGE, meanings_of, page


@dataclasses.dataclass(frozen=True)
class Described:
    """A value.

    first   is said here, and
            goes on in a second line
    """

    first: int = 1
    second: int = 2
    """Is said below."""


@dataclasses.dataclass(frozen=True)
class Silent:
    """A value."""

    hidden: int = 1


def test_the_page_is_in_step_with_the_code() -> None:
    assert Path(PAGE).read_text() == page(), "run python docs/make_recipe_page.py"


def test_meanings_come_from_the_docstring_and_from_below_the_field() -> None:
    assert meanings_of(Described) == {"first": "is said here, and goes on in a second line", "second": "Is said below."}


def test_a_field_that_nobody_describes_is_an_error() -> None:
    with pytest.raises(ValueError, match="Silent says nothing of hidden: describe it in its docstring"):
        meanings_of(Silent)
