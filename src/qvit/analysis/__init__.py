"""analyze(): which parts of a network break under quantization, measured one by one on the user's own images.

Every subject (`components`: roles, attention and MLP as a whole, layers, heads) is measured at each bit-width in two ways:

    alone          only the subject is quantized, the rest is float        how much it breaks by itself
    all but one    everything is quantized except the subject              how much it costs in company

The two need not agree: errors that add up to nothing alone can be what is left when all others are gone. Patch embedding and
classifier take the bit-width alone, but stay at 8 bits in the company of all others, as they do in a model that qvit
makes. Besides, every *site* (one group of one tensor) is quantized alone on fewer images, for the signal-to-noise ratio only:
the map of heads by role, and what `init_bits` allocates from.

Scales are least-squares fits to training images (`calibrate`). There is one quantized copy of the model; gates choose what
acts (`gates`), and a variant starts at the first step that it changes (`prefix`). The loops are

    bit-width -> batch of images -> variant

so that the activations of one batch are kept at a time. The float network is that same copy with all gates closed: the
difference between two variants is quantization and, where values lie next to a tie, float32 rounding (`exact`), which the
intervals contain.

After every batch one line goes to analysis.jsonl (`instrument` says what is in it); a killed analysis continues after the last
whole line and ends with the same numbers. `results` adds the lines up into analysis.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from ..bits.init_bits import allocate_bits, check_allocation
from ..settings.provenance import versions
from ..settings.values import to_values
from ..system.progress import Progress
from ..system.runs import Run
from ..training.distill import fingerprint
from .config import AnalysisConfig
from .data import AnalysisData
from .finetune import Finetuning
from .instrument import Instrument
from .results import analysis_of
from .verdict import verdict

LOG, RESULT, INIT_BITS = "analysis.jsonl", "analysis.json", "init_bits.json"


def analyze(
    model: nn.Module,
    data: AnalysisData,
    config: AnalysisConfig,
    out: Path,
    *,
    budget_gbitops: float | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Analyse a float model into the directory `out`; returns the content of its analysis.json.

    model           a supported timm model with its weights
    budget_gbitops  also allocate bits under this budget, into init_bits.json
    resume          continue an analysis that was interrupted; a finished one is read from its log

    Raises FileExistsError when `out` holds an analysis and `resume` is not set; ValueError when it is one of another model
    or with other settings, when training is asked for without labels, or an allocation with a single bit-width; BudgetError,
    before anything is measured, when the fewest bits cost more than the budget; FloatingPointError when logits are not finite.
    """
    if budget_gbitops is not None:
        check_allocation(model, config.bits, budget_gbitops)
    if config.finetune_steps and data.splits is None:
        raise ValueError("--finetune-steps needs labels to train on, and these images have none; leave it out")
    log = _Log(Run(out), _settings(model, data, config), resume)
    instrument = Instrument(model, data, config)
    done = {(record["bits"], record["batch"]) for record in log.records if "batch" in record}
    counted = instrument.variants * len(done)
    progress = Progress(instrument.variants * data.batches * len(config.bits), counted, quiet)

    def tick(images: int) -> None:
        nonlocal counted
        counted += 1
        progress.images += images
        progress.show(counted, {})

    for bits in config.bits:
        for number, (images, labels) in enumerate(data.measured):
            if (bits, number) not in done:
                log.append({"bits": bits, "batch": number, **instrument.measure(images, labels, bits, tick)})
    if config.finetune_steps:
        for record in Finetuning(instrument, data, config).records(log.records, progress.say):
            log.append(record)
    found = analysis_of(log.records, instrument.subjects)
    seen = {"calibration_images": instrument.calibration_images}
    result = {**log.settings, **seen, "versions": versions(), **found}
    if budget_gbitops is not None:
        result["allocation"] = allocate_bits(model, result["sites"], budget_gbitops)
        log.run.write_json(INIT_BITS, result["allocation"])
    result["verdict"] = verdict(result)
    log.run.write_json(RESULT, result)
    return result


def _settings(model: nn.Module, data: AnalysisData, config: AnalysisConfig) -> dict[str, Any]:
    """What the numbers depend on; what a resume must agree with, and the head of analysis.json, with the images that there were."""
    values = to_values(config)
    values.pop("kind")
    return {
        "model": type(model).__name__,
        "weights": fingerprint(model),
        "dataset": data.data.dataset,
        "split": data.data.eval_split,
        **values,
        "images": data.images,
        "batch_size": data.batch_size,
    }


class _Log:
    """analysis.jsonl: the settings, then one record per batch or per trained variant."""

    def __init__(self, run: Run, settings: dict[str, Any], resume: bool) -> None:
        self.run, self.settings = run, settings
        self.records = run.read(LOG)
        if len(self.records) < 2:  # settings alone, or a line that was cut off: nothing to lose
            run.drop_after(LOG, -1)
            self.records = []
            self.append({"settings": settings})
            return
        if not resume:
            raise FileExistsError(f"{run.folder} holds an analysis; continue it with --resume, or choose another --out")
        run.drop_after(LOG, self.records[-1]["step"])  # what a kill cut off
        before = self.records[0]["settings"]
        changed = sorted(key for key in before.keys() | settings.keys() if before.get(key) != settings.get(key))
        if changed:
            raise ValueError(
                f"{run.folder} holds an analysis with another {', '.join(changed)}; resume it with the same settings, or "
                "choose another --out"
            )

    def append(self, record: dict[str, Any]) -> None:
        """Add a record, to the file and here."""
        record = {"step": len(self.records), **record}
        self.run.append(LOG, record)
        self.records.append(record)
