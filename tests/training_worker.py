"""One process of toy training runs: `python training_worker.py FOLDER CASE...`, alone or under torchrun.

Every process leaves what it ended with in FOLDER/CASE: `rank-R.safetensors`, its whole state, and `rank-R.json`, the outcome of
an evaluation that all share. Dropout is off: its draws are one thing that the number of processes does change.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from qvit.bits.allocate import Lagrangian
from qvit.bits.budget import Budget
from qvit.data import EpochOrder, SeededDataset
from qvit.data.augment import eval_transform
from qvit.evaluation.shared_evaluation import evaluate_together, share_of
from qvit.methods import QViTIRM, qvit_irm
from qvit.spec import Spec
from qvit.system.processes import process_state
from qvit.system.runs import save_tensors
from qvit.training.fit_config import FitConfig
from qvit.training.guide import Guide
from toy_models import uniform, vit
from toy_training import CLASSES, three_bits, toy_data, toy_model, toy_run

BATCH = 48  # slices of 2 and of 3 processes are even
SETTINGS = {"epochs": 3.0, "lock_at": 0.67, "log_every": 1, "learning_rate": 2e-3}  # 6 steps, 4 of them before the lock
LEARNED = FitConfig(**SETTINGS, allocation=Lagrangian(every=1, warm_up=2))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Case:
    """A run: config, what is quantized and how, and the images of a batch."""

    config: FitConfig
    spec: Spec | QViTIRM = field(default_factory=Spec)
    batch: int = BATCH
    budget: Budget | None = None


CASES = {
    "learned": Case(LEARNED, budget=three_bits()),
    "uneven-probes": Case(LEARNED, budget=three_bits(), batch=24),  # of 6 images, two processes look at 4 and 2
    "activations-first": Case(replace(LEARNED, activations_first=0.5), budget=three_bits()),
    "uniform": Case(FitConfig(**SETTINGS), uniform(3)),  # type: ignore[arg-type]
    "accumulated": Case(FitConfig(**{**SETTINGS, "accumulate": 2, "epochs": 1.0}), uniform(3), batch=24),  # type: ignore[arg-type]
    "bf16": Case(FitConfig(**SETTINGS, precision="bf16"), uniform(3)),  # type: ignore[arg-type]
    "irm": Case(FitConfig(**SETTINGS), QViTIRM(3, 3)),  # type: ignore[arg-type]
    "indivisible": Case(FitConfig(**SETTINGS), uniform(3), batch=16),  # type: ignore[arg-type]
}


def uneven_split(images: int = 50, batch: int = 8) -> DataLoader:
    """Seven batches, the last of two images: neither two nor three processes can share them evenly."""
    data = toy_data()
    source = data.train.dataset.source  # type: ignore[attr-defined]
    order = EpochOrder(images, batch, 0, shuffle=False, drop_last=False)
    return DataLoader(SeededDataset(source, eval_transform(data.config), 0, CLASSES), batch_sampler=order)


def run_case(case: Case, folder: Path) -> None:
    """Train, evaluate, write; or write the text of the error."""
    guide: Guide | None = None
    if isinstance(case.spec, QViTIRM):
        teacher = vit(depth=1)
        model = qvit_irm.quantize(teacher, case.spec)
        qvit_irm.calibrate(model, [images for images, _ in toy_data().eval])
        guide = qvit_irm.guide(model, case.spec, teacher)
    else:
        model = toy_model(case.spec, drop_path_rate=0.0, proj_drop_rate=0.0)
    split, data = uneven_split(), toy_data(batch_size=case.batch)
    name = f"rank-{process_state().process_index}"
    try:
        toy_run(case.config, folder / "run", model, data, budget=case.budget, guide=guide, evaluation=split)
    except ValueError as error:
        (folder / f"{name}.txt").write_text(str(error))
        return
    found = evaluate_together(model, share_of(split))
    save_tensors(folder / f"{name}.safetensors", model.state_dict(), {})
    outcome = {
        "images": found.images,
        "top1": found.top1,
        "predictions": found.predictions.tolist(),
        "labels": found.labels.tolist(),
    }
    (folder / f"{name}.json").write_text(json.dumps(outcome))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for case_name in sys.argv[2:]:
        run_case(CASES[case_name], Path(sys.argv[1], case_name))
