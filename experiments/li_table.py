"""Q-ViT of Li et al. against the same training without its mechanisms: paired differences over three seeds, for the README.

python experiments/li_table.py                    # the table, from experiments/results/li
python experiments/li_table.py --keep runs/li     # first copy the results of finished runs NAME_sSEED from there

A run is `qvit run recipes/cifar10/RECIPE.toml --set fit.precision=bf16 --set fit.epochs=1 --set seed=SEED`, and for the last row
`--set quantize.guide=0.1`. As in evidence.py, the outcome of every validation image is kept beside the result.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from evidence_found import outcomes_of
from evidence_statistics import difference
from qvit.evaluation.outcome import load_predictions
from qvit.pipeline.finished import read_result

KEPT = Path(__file__).parent / "results" / "li"
SEEDS = (0, 1, 2)
BASELINE = "lsq_w2a2"
ROWS = {
    BASELINE: "uniform LSQ, per channel",
    "irm_dgd_w2a2": "IRM and DGD, weight 1",
    "irm_dgd01_w2a2": "IRM and DGD, weight 0.1",
}


def keep(runs: Path) -> None:
    """Copy the results of the rows' runs."""
    for name in ROWS:
        for seed in SEEDS:
            run = runs / f"{name}_s{seed}"
            predictions = load_predictions(run)
            correct = np.packbits(predictions["module"] == predictions["labels"]).tobytes().hex()
            record = {**read_result(run), "correct": correct}
            (KEPT / f"{name}_seed{seed}.json").write_text(json.dumps(record, indent=2) + "\n")


def table() -> list[str]:
    """Markdown lines."""
    results = {name: [json.loads((KEPT / f"{name}_seed{seed}.json").read_text()) for seed in SEEDS] for name in ROWS}
    found = {name: np.stack([outcomes_of(result) for result in rows]) for name, rows in results.items()}
    lines = ["| 2 bits, one epoch | top-1 % of seeds 0, 1, 2 | mean | minus LSQ |", "|---|---|---|---|"]
    for name, title in ROWS.items():
        each = ", ".join(f"{100 * top1:.2f}" for top1 in found[name].mean(1))
        minus = "" if name == BASELINE else str(difference(found[name], found[BASELINE]))
        lines.append(f"| {title} | {each} | {100 * found[name].mean():.2f} | {minus} |")
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, metavar="DIR")
    arguments = parser.parse_args()
    if arguments.keep is not None:
        keep(arguments.keep)
    print("\n".join(table()))
