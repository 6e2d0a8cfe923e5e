"""BitSchedule: when bits move during a training run, and when they become final.

    before step 0     Lagrangian: `warm_up` probes of the calibrated model, then the allocation that they ask for, unless
                      its bits are one already (`init_bits`)
    stage 1           Lagrangian: every few steps a probe, then a move        (`sensitivity`, `allocate`)
                      Published: AdamW moves the bits; after each step the widths in force follow
    after `lock_step` steps    the lock: bits are final, at or under the budget        (`lock`)

Whether bits are final is read off the quantizers and not off the step, so neither a resume nor another `lock_at` can set
them free again. `fit` owns the forward and backward passes; this class says when to look at them and what follows.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

from torch import Tensor, nn

from ..bits.allocate import Lagrangian, Published, penalty, update
from ..bits.budget import Budget
from ..bits.cost import costs
from ..bits.lock import lock
from ..bits.sensitivity import Sensitivity
from .fit_config import FitConfig

PUBLISHED_PROBES = 16  # steps before the lock that Published probes: the lock needs sensitivities to order its moves
PROBE_SHARE = 0.25  # a probe tries every width on this share of a batch, so that it costs less than a step does
FIRST_MOVES = 60  # at most: enough to reach the allocation from any start


class BitSchedule:
    """The bits of one run.

    model      calibrated, with learned bits
    budget     what it may cost after the lock
    config     allocation and refill
    lock_step  optimizer steps after which the bits are final
    first      steps at the start in which weights are float (`activations_first`)
    """

    def __init__(self, model: nn.Module, budget: Budget, config: FitConfig, lock_step: int, first: int = 0) -> None:
        self.model, self.budget, self.lock_step, self.first = model, budget, lock_step, first
        self.allocation, self.refill = config.allocation, config.refill
        by_benefit = (
            self.allocation if isinstance(self.allocation, Lagrangian) else Lagrangian()
        )  # the lock wants one, too
        self.sensitivity = Sensitivity(
            model, by_benefit.decay, share=PROBE_SHARE, weight_factor=by_benefit.weight_factor
        )
        self.shape = costs(model)

    @property
    def learning(self) -> bool:
        """Some bits are not final yet."""
        return any(quantizer.is_learned for quantizer in self.sensitivity.quantizers.values())

    @property
    def warm_up(self) -> int:
        """Probes wanted before the first step, each followed by `remember`."""
        return self.allocation.warm_up if isinstance(self.allocation, Lagrangian) else 0

    def probes(self, step: int) -> bool:
        """Whether this optimizer step is probed."""
        if not self.learning:
            return False
        if isinstance(self.allocation, Lagrangian):
            return step % self.allocation.every == 0
        return self.lock_step - step <= PUBLISHED_PROBES

    def probe(self, images: int, parts: int) -> AbstractContextManager[None]:
        """Around one forward and backward pass over this process's `images` images with the mean loss divided by `parts`."""
        return self.sensitivity.probe(images, parts)

    def remember(self) -> None:
        """Fold the last probe into the sensitivities."""
        self.sensitivity.update()

    def penalty(self) -> Tensor | None:
        """What Published adds to the loss; None otherwise, and once the bits are final."""
        if not (isinstance(self.allocation, Published) and self.learning):
            return None
        return penalty(self.model, self.shape, self.budget, self.allocation.weight).float()

    def allocate_first(self) -> None:
        """Before the first step, after the warm-up probes."""
        if isinstance(self.allocation, Lagrangian):
            update(self.model, self.sensitivity, self.budget, self.allocation, moves=FIRST_MOVES)

    def after_step(self, step: int, probed: bool) -> bool:
        """Move bits after optimizer step `step` and lock them when it is time; true when a width or the lock changed."""
        if not self.learning:
            return False
        changed = False
        if probed:
            self.remember()
            self.sensitivity.warm_slots(float_weights=step < self.first)
        if isinstance(self.allocation, Published):
            changed = any([q.settle_bits() for q in self.sensitivity.quantizers.values()])  # noqa: C419 - settle all
        elif probed:
            changed = update(self.model, self.sensitivity, self.budget, self.allocation)
        if step + 1 >= self.lock_step:
            lock(self.model, self.sensitivity, self.budget, self.refill)
            return True
        return changed
