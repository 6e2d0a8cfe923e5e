"""TrainingLog: what a training run tells: metrics.jsonl, bits.jsonl, scales.jsonl, TensorBoard and the line for people.

Only the main process writes files. On a resume, lines that are newer than the checkpoint are dropped first, so that the log
of a resumed run is that of an unbroken one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ..bits.allocate import spread
from ..bits.cost import cost
from ..quantizers.quantizer import named_quantizers
from ..system.progress import Progress
from ..system.runs import Run
from .fit_config import FitConfig
from .tracking import TensorBoard

LOGS = ("metrics.jsonl", "bits.jsonl", "scales.jsonl")
SCALES_EVERY = 5  # lines of metrics between two lines of scales, which are longer


class TrainingLog:
    """The reports of one run.

    run              directory to write into, or None
    main             this process writes
    quiet            nothing for people
    steps            optimizer steps of the whole run
    steps_per_epoch  of them in an epoch
    step             the step that the run continues from, 0 at a fresh start
    on_log           called after each line of metrics, where this process writes
    """

    def __init__(
        self,
        config: FitConfig,
        run: Run | None,
        main: bool,
        quiet: bool,
        steps: int,
        steps_per_epoch: int,
        step: int,
        on_log: Callable[[], None] | None = None,
    ) -> None:
        self.every, self.steps, self.steps_per_epoch = config.log_every, steps, steps_per_epoch
        self.folder = run if main else None
        self.on_log = on_log if main else None
        if self.folder is not None:
            for log in LOGS:
                self.folder.drop_after(log, step if step else -1)
        self.progress = Progress(steps, step, quiet)
        self.board: TensorBoard | None = None
        if config.tensorboard and self.folder is not None:
            self.board = TensorBoard(self.folder.folder / "tensorboard", step)

    def metrics(self, step: int, record: dict[str, Any]) -> None:
        """One line of metrics.jsonl, and the same for TensorBoard."""
        record = {"step": step, "epoch": step / self.steps_per_epoch, **record}
        if self.folder is not None:
            self.folder.append("metrics.jsonl", record)
        if self.board is not None:
            self.board.write(record)
        if self.on_log is not None:
            self.on_log()

    def step(self, step: int, record: dict[str, float], learning_rate: float, learned: nn.Module | None) -> None:
        """Every `log_every` steps and at the end: the record, the price of a module that learns bits, the line for people."""
        if step % self.every and step != self.steps:
            return
        if learned is not None:
            summary = cost(learned)
            record = {
                **record,
                "gbitops": summary.gbitops,
                "weight_bits": summary.average_weight_bits,
                "activation_bits": summary.average_activation_bits,
            }
        self.metrics(step, {**record, "learning_rate": learning_rate})
        self.progress.show(step, record)

    def bits(self, step: int, model: nn.Module, locked: bool) -> None:
        """A line in the bit history; at the lock also one for people."""
        if self.folder is not None:
            self.folder.append("bits.jsonl", {"step": step, "locked": locked, "bits": spread(model)})
        if locked:
            summary = cost(model)
            self.progress.say(
                f"step {step}: bits locked at {summary.gbitops:.4f} GBitOPs, {summary.average_weight_bits:.2f} weight "
                f"and {summary.average_activation_bits:.2f} activation bits on average"
            )

    def scales(self, step: int, model: nn.Module) -> None:
        """Every few lines of metrics: the logarithm (base 2) of each scale in force, where the model has quantizers."""
        if self.folder is None or step % (SCALES_EVERY * self.every):
            return
        quantizers = named_quantizers(model)
        if quantizers:
            logs = {name: q.scale_at(q.bit_width).log2().tolist() for name, q in quantizers.items()}
            rounded = {name: [round(value, 3) for value in values] for name, values in logs.items()}
            self.folder.append("scales.jsonl", {"step": step, "log2_scale": rounded})

    def top1(self, step: int, top1: float | None, float_weights: bool) -> None:
        """The outcome of an evaluation; the record says so where weights were float (`activations_first`)."""
        self.metrics(step, {"top1": top1, "float_weights": 1} if float_weights else {"top1": top1})
        self.progress.top1 = top1
        if top1 is not None:
            self.progress.say(f"step {step}: top-1 {top1:.2f} %{' with float weights' if float_weights else ''}")

    def roll_back(self, failed: int, step: int, factor: float, because: str) -> None:
        """The run goes on from `step` at `factor` of the learning rates, for after step `failed` it was not finite.

        The record has the number of the first step at the lower rates: a resume from `step` itself drops it, and writes it
        again when it comes to the same end.
        """
        if self.folder is not None:
            for log in LOGS:
                self.folder.drop_after(log, step)
        if self.board is not None and self.folder is not None:
            self.board.close()
            self.board = TensorBoard(self.folder.folder / "tensorboard", step)
        self.metrics(step + 1, {"rolled_back_from": failed, "rolled_back_to": step, "rate_factor": factor})
        self.progress.say(f"{because}\ngoing back to step {step}, and on at {factor:g} of the learning rates")

    def close(self) -> None:
        """Flush to disk."""
        if self.board is not None:
            self.board.close()


def evaluated_before(run: Run | None, step: int) -> tuple[int, float | None]:
    """(step, top-1) when the log of the run that is resumed has an evaluation at this very step, else (-1, None)."""
    for record in run.read("metrics.jsonl") if run is not None else []:
        if record["step"] == step and "top1" in record:
            return step, record["top1"]
    return -1, None
