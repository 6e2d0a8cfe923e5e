"""AnalysisConfig: what an analysis measures, on how many images. Values only, validated once."""

from __future__ import annotations

from dataclasses import dataclass

from ..spec import MAX_BITS, MIN_BITS


@dataclass(frozen=True)
class AnalysisConfig:
    """How to analyse a model."""

    bits: tuple[int, ...] = (2, 3, 4)
    """Bit-widths to quantize at, each on its own."""
    images: int = 2000
    """Images to measure on, at most; analysis.json has how many there were."""
    calibration_images: int = 512
    """Training images that the scales are fitted to, likewise."""
    site_images: int = 256
    """Of the images, how many every single group of every single tensor is measured on (SQNR only: a ratio of energies needs
    far fewer images than an accuracy)."""
    finetune_steps: int = 0
    """Also train every component's variants for so many steps before they are measured; 0: do not."""
    batch_size: int = 100
    """Images at a time: the activations at every step of the network are kept for so many."""
    seed: int = 0
    """Of the choice of calibration images, and of the training."""

    def __post_init__(self) -> None:
        wrong = [bits for bits in self.bits if not MIN_BITS <= bits <= MAX_BITS]
        if wrong or not self.bits or len(set(self.bits)) < len(self.bits):
            given = ",".join(map(str, self.bits))
            raise ValueError(
                f"bits are {given or 'none'}; give different widths from {MIN_BITS} to {MAX_BITS}, such as 2,3,4"
            )
        for name, least in (
            ("images", 2),
            ("calibration_images", 1),
            ("site_images", 1),
            ("finetune_steps", 0),
            ("batch_size", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
