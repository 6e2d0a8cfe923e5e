"""The rows of the evidence: every training run that docs/evidence.md stands on, most telling first.

One row is one recipe of recipes/cifar10 with `SHARED` settings and its own, trained once per seed. All rows of a model start
from the same float weights and see the same 450,000 images (10 epochs of 45,000) in the order of their seed, with the same
optimizer, learning rate, augmentation and labels, and no teacher but in the rows of `DISTILLED`. Uniform rows are LSQ; `float` is the same start trained on.

Rows with learned bits put most weights at two bits and have what lets two bits work (`TWO_BITS`): scales per channel, a grid
without zero, a gradient for clipped weights. So that it can be seen what of their gain is due to that and what to the bits,
there are controls, which have the same and fixed bits ("same grids"), and rows with learned bits that take one of them back.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qvit.settings.recipe import Recipe, load_recipe

RECIPES = Path(__file__).resolve().parents[1] / "recipes" / "cifar10"

SHARED = ("fit.precision=bf16",)
"""Of every row. bfloat16 products are what makes a row half an hour on one core; quantizers compute in float32 all the same."""

TWO_BITS = (
    'quantize.weight_scale={kind="PerChannel"}',
    'quantize.weight_grid={kind="MidRise"}',
    'quantize.weight_gradient={kind="PassThroughGradient"}',
)
"""What lets weights work with two bits (docs/training.md). The recipes with learned bits have it, and what else was chosen on
seed 0 with pilots of one epoch and three runs of ten (experiments/LOG.md): lock_at = 0.05, weight_factor = 0.1."""

MID_TREAD = 'quantize.weight_grid={kind="MidTread"}'
PER_TENSOR = 'quantize.weight_scale={kind="PerTensor"}'
CLIPPED = 'quantize.weight_gradient={kind="ClippedGradient"}'
SINGLE = 'quantize.scale={kind="SingleScale"}'
RANGE = 'quantize.scale={kind="SingleRange"}'
LATE = "fit.lock_at=0.6"
TEACHER = "fit.distillation=0.5"


@dataclass(frozen=True)
class Row:
    """One line of a table.

    name      of its directories: NAME_s0, NAME_s1, ...
    model     rows of one model are compared
    budget    rows of one budget are compared; "float" has none
    title     as the table calls it
    recipe    file in recipes/cifar10
    settings  KEY=VALUE beyond SHARED
    seeds     how many
    control   fixed bits with all else as in the rows with learned bits
    ablation  what is taken away from head-wise learned bits; "" for a row of the main table
    seen      so many seeds had been trained and looked at when the others were asked for; 0: all were asked for at once
    """

    name: str
    model: str
    budget: str
    title: str
    recipe: str
    settings: tuple[str, ...] = ()
    seeds: int = 3
    control: bool = False
    ablation: str = ""
    seen: int = 0

    @property
    def is_uniform(self) -> bool:
        """Uniform LSQ: what learned bits are measured against."""
        return self.recipe.startswith(("uniform", "swin_uniform")) and not self.control

    @property
    def runs(self) -> list[tuple[str, int]]:
        """(directory name, seed) of each run."""
        return [(f"{self.name}_s{seed}", seed) for seed in range(self.seeds)]

    def load(self, seed: int) -> Recipe:
        """The recipe of one run, resolved; settings that name files name them from the root of the repository."""
        return load_recipe(RECIPES / f"{self.recipe}.toml", [*SHARED, *self.settings, f"seed={seed}"])


DEIT, SWIN = "micro DeiT", "micro Swin"
DISTILLED = "micro DeiT, distilled"
"""A table of its own: the float weights that rows start from teach them, which moves all of them."""
BUDGETS = ("3 bits", "W2A3", "4 bits")
UNIFORM, LAYERS, HEADS = "uniform LSQ", "learned, layer-wise", "learned, head-wise"
HIDDEN = "learned, head-wise and hidden groups"
HIDDEN_GROUPS = "quantize.hidden_groups=8"
"""Hidden units of an MLP in eight groups that learn their bits as heads do (`qvit.network.hidden`)."""


def _without(name: str, part: str, ablation: str, *settings: str) -> Row:
    """One seed of head-wise bits at three bits, less one part."""
    return Row(name, DEIT, "3 bits", f"head-wise without {part}", "headwise_3bit", settings, 1, ablation=ablation)


ROWS = (
    Row("uniform_w3a3", DEIT, "3 bits", UNIFORM, "uniform_w3a3", seeds=5),
    Row("headwise_3bit", DEIT, "3 bits", HEADS, "headwise_3bit", seeds=5),
    Row("float", DEIT, "float", "float, fine-tuned", "float", seeds=5),
    Row("same_grids_w3a3", DEIT, "3 bits", "W3A3, same grids", "uniform_w3a3", TWO_BITS, seeds=1, control=True),
    Row(
        *("same_grids_w2a4", DEIT, "3 bits", "W2A4, same grids", "uniform_w4a4"),
        (*TWO_BITS, 'quantize.weights={kind="FixedBits",bits=2}'),
        control=True,
    ),
    Row("uniform_w2a3", DEIT, "W2A3", "uniform W2A3", "uniform_w2a3", seeds=20, seen=5),
    Row("same_grids_w2a3", DEIT, "W2A3", "W2A3, same grids", "uniform_w2a3", TWO_BITS, control=True),
    Row("uniform_w3a2", DEIT, "W2A3", "uniform W3A2", "uniform_w3a2"),
    Row("headwise_w2a3", DEIT, "W2A3", HEADS, "headwise_w2a3"),
    Row("hidden_w2a3", DEIT, "W2A3", HIDDEN, "headwise_w2a3", (HIDDEN_GROUPS,), seeds=20, seen=5),
    Row("hidden_3bit", DEIT, "3 bits", HIDDEN, "headwise_3bit", (HIDDEN_GROUPS,)),
    Row("swin_uniform_w3a3", SWIN, "3 bits", UNIFORM, "swin_uniform_w3a3"),
    Row("swin_headwise_3bit", SWIN, "3 bits", HEADS, "swin_headwise_3bit"),
    Row("uniform_w4a4", DEIT, "4 bits", UNIFORM, "uniform_w4a4"),
    Row("headwise_4bit", DEIT, "4 bits", HEADS, "headwise_4bit"),
    Row("layerwise_3bit", DEIT, "3 bits", LAYERS, "layerwise_3bit"),
    Row("layerwise_w2a3", DEIT, "W2A3", LAYERS, "layerwise_w2a3"),
    Row("layerwise_4bit", DEIT, "4 bits", LAYERS, "layerwise_4bit"),
    Row(
        *("swin_float", SWIN, "float", "float, fine-tuned", "swin_float"),
        (
            "model.checkpoint=experiments/results/swin_float/model.safetensors",
            *("fit.epochs=10", "fit.learning_rate=5e-4", "fit.warmup_epochs=0"),
        ),
    ),
    Row("distilled_w3a3", DISTILLED, "3 bits", UNIFORM, "uniform_w3a3", (TEACHER,), seeds=1),
    Row("distilled_headwise_3bit", DISTILLED, "3 bits", HEADS, "headwise_3bit", (TEACHER,), seeds=1),
    _without(
        "weights_count",
        "the weight factor",
        "errors of weights count like those of activations when bits are given away",
        'fit.allocation={kind="Lagrangian"}',
    ),
    _without(
        "late_lock",
        "the early lock",
        "bits move for 60 % of the steps instead of 5",
        LATE,
    ),
    _without(
        "mid_tread",
        "the grid without zero",
        "2-bit weights have a zero level",
        MID_TREAD,
    ),
    _without(
        "per_tensor",
        "scales per channel",
        "one scale per group of bits of a weight",
        PER_TENSOR,
    ),
    _without(
        "clipped",
        "the gradient of clipped weights",
        "clipped weights get no gradient, as published",
        CLIPPED,
    ),
    _without(
        "single_scale",
        "the switchable scale",
        "one scale for all bit-widths of a group, and so a zero level everywhere",
        MID_TREAD,
        SINGLE,
    ),
    _without(
        "late_lock_single_scale",
        "the switchable scale, locked late",
        "the same while bits move for 60 % of the steps",
        LATE,
        MID_TREAD,
        SINGLE,
    ),
    _without(
        "single_range",
        "the switchable scale but with one range",
        "one range for all bit-widths of a group: its scale fits when a width is taken up, with one parameter; a zero level everywhere",
        MID_TREAD,
        RANGE,
    ),
    _without(
        "shared_bank",
        "a bank per head",
        "the groups of a tensor share one bank, as in the authors' code",
        'quantize.scale={kind="SharedScale"}',
    ),
    _without(
        "published",
        "the multiplier",
        "bits in AdamW with the published penalty, locked at 60 %",
        LATE,
        'fit.allocation={kind="Published"}',
    ),
    _without(
        "published_rate",
        "a rate of their own",
        "the same with the weights' learning rate for the bits",
        LATE,
        'fit.allocation={kind="Published", learning_rate=5e-4}',
    ),
    _without(
        "published_single_scale",
        "multiplier and switchable scale",
        "bits in AdamW with one scale for all bit-widths of a group",
        LATE,
        'fit.allocation={kind="Published"}',
        MID_TREAD,
        SINGLE,
    ),
    _without(
        "no_refill",
        "the refill",
        "the lock only lowers bits",
        "fit.refill=false",
    ),
)

TRAJECTORIES = (
    "headwise_3bit_s0",
    "single_scale_s0",
    "late_lock_s0",
    "late_lock_single_scale_s0",
    "published_s0",
    "published_single_scale_s0",
)
"""Runs that keep their logs: how bits and scales moved (`evidence_convergence`)."""
