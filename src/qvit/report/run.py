"""What the report knows of one run, as values; `read.py` fills them from the files of a run directory.

None or an empty tuple stands for a part that the run does not have (yet).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .activations import Activations
from .artifact import Artifact
from .banks import Bank

Numbers = dict[str, float | None]
"""One line of metrics.jsonl; None where a number is not finite."""


@dataclass(frozen=True)
class Outcome:
    """A row of results. Accuracies and agreements in percent, sizes in KiB; None: not known.

    arguments  of the model, which make it another network than its name says
    """

    method: str
    model: str
    arguments: str
    seed: int | None
    epochs: float | None
    images: int | None
    top1: float | None
    top1_float: float | None
    top1_frozen: float | None
    agreement_frozen: float | None
    collapse: str | None
    gbitops: float | None
    budget: dict[str, float]
    average_weight_bits: float | None
    average_activation_bits: float | None
    artifact_kib: float | None
    bits: dict[str, tuple[int, ...]]
    versions: dict[str, str]

    @property
    def is_float(self) -> bool:
        """The float model itself."""
        return self.method == "float"

    @property
    def is_uniform(self) -> bool:
        """One bit-width everywhere: a baseline for learned bits."""
        return self.method.startswith("uniform")

    @property
    def task(self) -> str:
        """Rows of one task may be compared: the same model, arguments included, judged on as many images."""
        arguments = f" ({self.arguments})" if self.arguments else ""
        return f"{self.model}{arguments}, {self.images} images"


@dataclass(frozen=True)
class Widths:
    """The bit-widths in force from a step on: tensor -> one per group."""

    step: int
    locked: bool
    bits: dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class StepTime:
    """Time of one step of the engine, seconds summed over threads; `ops` are places in the program."""

    name: str
    ops: tuple[int, ...]
    seconds: float


@dataclass(frozen=True)
class Bench:
    """A measurement of the native engine; seconds of one call with `batch` images."""

    path: str
    threads: int
    batch: int
    median: float
    steps: tuple[StepTime, ...]

    @property
    def milliseconds(self) -> float:
        """Median of one image."""
        return 1000 * self.median / self.batch

    @property
    def conditions(self) -> str:
        """What must be equal for two times to be compared."""
        return f"{self.path}, {self.threads} thread{'s' * (self.threads > 1)}, batch {self.batch}"


@dataclass(frozen=True)
class Run:
    """Everything that the report knows of one run. `learns_bits`: so its recipe says; not so where there is none."""

    name: str
    path: Path
    outcome: Outcome | None
    recipe: dict[str, Any] | None
    learns_bits: bool
    provenance: dict[str, Any] | None
    metrics: tuple[Numbers, ...]
    history: tuple[Widths, ...]
    analysis: dict[str, Any] | None
    bench: Bench | None
    artifact: Artifact | None
    activations: Activations | None
    banks: tuple[Bank, ...]

    @property
    def bits(self) -> dict[str, tuple[int, ...]]:
        """The bit-widths in force, of the outcome or of the newest line of the history."""
        if self.outcome is not None and self.outcome.bits:
            return self.outcome.bits
        return self.history[-1].bits if self.history else {}

    @property
    def is_trained(self) -> bool:
        """A run of a recipe and not only an analysis."""
        return self.outcome is not None or bool(self.metrics) or self.recipe is not None

    @property
    def lock_step(self) -> int | None:
        """The step at which the bits were locked."""
        return next((widths.step for widths in self.history if widths.locked), None)
