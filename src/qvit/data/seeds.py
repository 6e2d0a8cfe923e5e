"""Random states on purpose: a seed for every named thing, and a way to draw without being noticed.

Transforms (timm, torchvision) and timm's mixup draw from the global Python, numpy and torch states. Those states also
drive the model's own randomness (drop path), so whoever seeds them for a sample puts them back.
"""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_of(*words: int | str) -> int:
    """A 63-bit seed from words, such as ("sample", seed, epoch, index); the same on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(words).encode(), digest_size=8).digest(), "little") >> 1


def set_random_states(seed: int) -> None:
    """Seed the states that transforms draw from: Python's, numpy's and torch's on the CPU (no other device)."""
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed)


@contextmanager
def kept_random_states() -> Iterator[None]:
    """Whatever happens inside, Python's, numpy's and torch's CPU random states come out as they went in."""
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
