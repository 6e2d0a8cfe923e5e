"""Mutation fuzzing of the reader: damaged bytes give an ArtifactError or a well-formed Program, never anything else."""

from __future__ import annotations

import random

import pytest

import golden_integer_program as integers
import golden_midrise_program as midrise
from golden_program import GOLDEN
from qvit_runtime import ArtifactError, check, load

GOOD = (GOLDEN.read_bytes(), integers.GOLDEN.read_bytes(), midrise.GOLDEN.read_bytes())
INTERESTING = b'\x00\xff"{}[],:-0123456789eE.\\\xc0\x7f'


def mutate(rng: random.Random) -> bytes:
    """A few changes: flipped bits, replaced, inserted, removed or moved bytes, a shorter file; most of them in the header."""
    good = rng.choice(GOOD)
    header_end = 8 + int.from_bytes(good[:8], "little")
    content = bytearray(good)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at = rng.randrange(header_end if rng.random() < 0.8 else len(content)) % len(content)
        match rng.randrange(7):
            case 0:
                content[at] ^= 1 << rng.randrange(8)
            case 1 | 2:
                content[at] = rng.choice(INTERESTING)
            case 3:
                content[at:at] = bytes(rng.choices(INTERESTING, k=rng.randrange(1, 9)))
            case 4:
                del content[at : at + rng.randrange(1, 9)]
            case 5:
                other, length = rng.randrange(len(content)), rng.randrange(1, 64)
                content[at : at + length] = content[other : other + length]
            case 6:
                if rng.random() < 0.3:
                    del content[at:]
        if not content:
            break
    if rng.random() < 0.5 and len(content) > 8:  # a header length that fits again, so that the mutation is looked at
        content[:8] = (header_end - 8 + len(content) - len(good)).to_bytes(8, "little", signed=True)
    return bytes(content)


def fuzz(folder, seeds: range) -> int:
    """Number of mutants that were refused; any other exception than ArtifactError ends the test."""
    refused, path = 0, folder / "mutant.qvit"
    for seed in seeds:
        content = mutate(random.Random(seed))
        path.write_bytes(content)
        try:
            check(load(path))
        except ArtifactError as error:
            refused += "\n" not in str(error)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__} instead of ArtifactError") from error
    return refused


def test_mutants_are_refused_or_well_formed(tmp_path):
    refused = fuzz(tmp_path, range(400))
    assert 200 < refused < 400  # some mutants must get through, or the reader refuses everything


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_many_mutants(tmp_path, part):
    assert fuzz(tmp_path, range(1000 + part * 2000, 3000 + part * 2000)) > 0


@pytest.mark.parametrize("good", GOOD, ids=["version 1", "version 2", "version 3"])
def test_every_truncation_is_refused(tmp_path, good):
    path = tmp_path / "cut.qvit"
    for length in [*range(64), *range(64, len(good), 97)]:
        path.write_bytes(good[:length])
        with pytest.raises(ArtifactError):
            load(path)
