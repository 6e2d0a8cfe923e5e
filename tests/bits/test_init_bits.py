"""The allocation of an analysis: bits go where noise is measured, the budget holds, and a quantized model starts there."""

from __future__ import annotations

import dataclasses
import json
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from qvit.analysis.components import all_sites
from qvit.bits.allocate import Lagrangian
from qvit.bits.budget import Budget, BudgetError
from qvit.bits.cost import cost
from qvit.bits.init_bits import allocate_bits, apply_init_bits
from qvit.methods import METHODS
from qvit.network.convert import quantize
from qvit.pipeline.float_model import create_float_model
from qvit.pipeline.run import run_recipe
from qvit.planning.dry_run import dry_run
from qvit.quantizers.quantizer import named_quantizers
from qvit.settings.recipe import load_recipe
from qvit.spec import FixedBits, LearnedBits, PerHead, PerTensor, Spec
from qvit.system.runs import Run
from qvit.training.fit_config import FitConfig
from toy_models import uniform, vit
from toy_training import QUICK, same_state, toy_model, toy_run


def sites(loud: dict[tuple[str, int], float], widths: tuple[int, ...] = (2, 3, 4)) -> list[dict[str, Any]]:
    """20 dB at 2 bits and 6 dB per bit for every site; `loud` ones are so many dB worse."""
    tensors: dict[str, list[float]] = {}
    for tensor, group in all_sites(quantize(vit(), uniform(4), quiet=True)):
        tensors.setdefault(tensor, []).append(20.0 - loud.get((tensor, group), 0.0))
    return [
        {"tensor": tensor, "bits": bits, "logit_sqnr_db": [db + 6 * (bits - 2) for db in decibels]}
        for bits in widths
        for tensor, decibels in tensors.items()
    ]


def price(bits: int) -> float:
    return cost(quantize(vit(), uniform(bits), quiet=True)).gbitops


def test_noisy_sites_get_the_bits() -> None:
    """Two loud sites, v rows of head 0 and a GELU output, against sites of the same price, at a tenth more than 2 bits cost."""
    loud = {("blocks.0.attn.qkv.weight", 4): 20.0, ("blocks.1.mlp.fc2.input", 0): 20.0}
    budget = 1.1 * price(2)
    found = allocate_bits(vit(), sites(loud), budget)
    assert found["gbitops"] <= found["budget_gbitops"] == budget
    assert found["gbitops"] > 0.97 * budget
    assert found["bits"]["blocks.1.mlp.fc2.input"][0] > found["bits"]["blocks.0.mlp.fc2.input"][0]
    rows = found["bits"]["blocks.0.attn.qkv.weight"]
    assert rows[4] > max(rows[:4] + rows[5:])
    assert not [name for name in found["bits"] if name.startswith(("patch_embed", "head"))]
    every = [width for widths in found["bits"].values() for width in widths]
    assert set(every) == {2, 3, 4}


def test_a_width_that_was_not_analysed_lies_between_its_neighbours() -> None:
    """2 and 4 bits measured: 3 is the geometric mean, so the allocation is that of three measured widths."""
    loud = {("blocks.0.attn.v", 1): 9.0, ("blocks.1.mlp.fc1.weight", 0): 5.0}
    two, three = (allocate_bits(vit(), sites(loud, widths), price(3)) for widths in ((2, 4), (2, 3, 4)))
    assert two == three


def test_the_budget_ends_the_choice() -> None:
    found = allocate_bits(vit(), sites({}), 1.0)
    assert all(width == 4 for widths in found["bits"].values() for width in widths)
    with pytest.raises(
        BudgetError, match=r"^a budget of 0\.\d+ gbitops cannot be met: .*; give a budget in that range or"
    ):
        allocate_bits(vit(), sites({}), price(2) / 2)
    with pytest.raises(ValueError, match=r"^an allocation chooses between bit-widths: give --bits two or more of them"):
        allocate_bits(vit(), sites({}, (3,)), price(3))


def written(folder: Path, change: dict[str, Any] | None = None) -> Path:
    content = allocate_bits(vit(), sites({("blocks.0.attn.v", 1): 20.0}), price(3))
    content["bits"].update(change or {})
    path = folder / "init_bits.json"
    path.write_text(json.dumps(content))
    return path


def test_a_model_starts_where_the_file_says(tmp_path: Path) -> None:
    """Learned bits start there, still learned, and the cost is the one in the file; fixed ones stay."""
    path = written(tmp_path)
    content = json.loads(path.read_text())
    spec = Spec(LearnedBits(), LearnedBits(), PerHead(), overrides=(("*.fc1.weight", FixedBits(5)),))
    model = quantize(vit(), Spec(), quiet=True)
    apply_init_bits(model, path)
    assert cost(model).gbitops == pytest.approx(content["gbitops"])
    quantizers = named_quantizers(model)
    assert {name: quantizers[name].widths for name in content["bits"]} == content["bits"]
    assert all(quantizers[name].is_learned for name in content["bits"])
    assert torch.equal(quantizers["blocks.0.attn.v"].bits, torch.tensor(content["bits"]["blocks.0.attn.v"]).float())
    partly = quantize(vit(), spec, quiet=True)
    apply_init_bits(partly, path)
    assert named_quantizers(partly)["blocks.0.mlp.fc1.weight"].widths == [5]
    assert Budget(gbitops=price(3)).limit >= content["gbitops"]


@pytest.mark.parametrize(
    ("spec", "change", "text"),
    [
        (
            Spec(heads=PerTensor()),
            {},
            r"has 6 groups for blocks.0.attn.qkv.weight, the model has 3; .* use heads = PerHead and hidden_groups = 1$",
        ),
        (
            Spec(hidden_groups=4),
            {},
            r"has 1 groups for blocks.0.mlp.fc1.weight, the model has 4; an analysis is head-wise and has no hidden groups",
        ),
        (
            Spec(),
            {"blocks.7.attn.q": [2, 2]},
            r"has bits for blocks.7.attn.q, which the model has not: it was made for",
        ),
        (Spec(), {"blocks.0.attn.q": [2, 9]}, r"gives blocks.0.attn.q 9 bits; its spec allows 2 to 8$"),
        (uniform(3), {}, r"^the model has no learned bits that .* could start; use LearnedBits in its spec$"),
    ],
    ids=["groups", "hidden groups", "unknown", "width", "fixed"],
)
def test_files_that_do_not_fit(spec: Spec, change: dict[str, Any], text: str, tmp_path: Path) -> None:
    model = quantize(vit(), spec, quiet=True)
    before = {name: quantizer.widths for name, quantizer in named_quantizers(model).items()}
    with pytest.raises(ValueError, match=text):
        apply_init_bits(model, written(tmp_path, change))
    assert before == {name: quantizer.widths for name, quantizer in named_quantizers(model).items()}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, r"^there is no init_bits file .*; qvit analyze writes one with --budget-gbitops$"),
        ("{", r"is not JSON: "),
        ('{"version": 2, "bits": {}}', r"is no init_bits file of version 1; qvit analyze --budget-gbitops writes one$"),
        ('{"version": 1, "bits": {}}', r"has no bits for blocks.0.attn.attention: it was made for another model$"),
    ],
)
def test_files_that_are_none(content: str | None, text: str, tmp_path: Path) -> None:
    path = tmp_path / "init_bits.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=text):
        apply_init_bits(quantize(vit(), quiet=True), path)


# Training from there.


def learned_widths(model: nn.Module) -> dict[str, list[int]]:
    return {name: q.widths for name, q in named_quantizers(model).items() if q.is_learned}


def waves(folder: Path, model: nn.Module) -> tuple[Path, dict[str, list[int]]]:
    """A file that no allocation would write, 2, 3, 4, 2, 3, 4, ... bits from group to group; and its bits."""
    widths = cycle((2, 3, 4))
    bits = {name: [next(widths) for _ in groups] for name, groups in learned_widths(model).items()}
    path = folder / "waves.json"
    path.write_text(json.dumps({"version": 1, "budget_gbitops": 1.0, "gbitops": 1.0, "bits": bits}))
    return path, bits


@pytest.mark.parametrize("allocated", [True, False])
def test_the_first_allocation_replaces_them_unless_it_is_told(allocated: bool, tmp_path: Path) -> None:
    model = toy_model()
    path, bits = waves(tmp_path, model)
    apply_init_bits(model, path)
    config = FitConfig(epochs=1, allocation=Lagrangian(warm_up=2))
    toy_run(config, model=model, max_steps=0, evaluation=None, allocated=allocated)
    assert (learned_widths(model) == bits) is allocated


def test_a_resumed_run_goes_on_from_its_checkpoint_and_not_from_the_file(tmp_path: Path) -> None:
    path, bits = waves(tmp_path, toy_model())
    config = FitConfig(epochs=1, lock_at=0.7, checkpoint_every=1, allocation=QUICK)

    def go(run: Path, **arguments: object) -> nn.Module:
        model = toy_model()
        apply_init_bits(model, path)
        return toy_run(config, run, model, evaluation=None, allocated=True, **arguments)[0]

    unbroken = go(tmp_path / "whole")
    stopped = go(tmp_path / "parts", max_steps=3)
    assert learned_widths(stopped).keys() == bits.keys()
    assert learned_widths(stopped) != bits
    assert same_state(go(tmp_path / "parts", resume=True), unbroken) == []
    histories = [Run(tmp_path / run).read("bits.jsonl") for run in ("whole", "parts")]
    assert histories[0] == histories[1]
    assert bits.items() <= histories[0][0]["bits"].items()


def test_a_recipe_starts_there(done: tuple[Path, Path], tmp_path: Path) -> None:
    """The head-wise row alone, in one process and resumed in another; a dry run accepts the file, too."""
    recipe = load_recipe(done[0])
    model = METHODS["qvit"].quantize(create_float_model(recipe.model), recipe.quantize)
    path, bits = waves(tmp_path, model)
    alone = ("fit.epochs=1", "fit.distillation=0.0", "fit.cache_teacher=false", "fit.checkpoint_every=2")
    recipe = dataclasses.replace(
        load_recipe(done[0], [f"init_bits={path}", *alone]),
        model=dataclasses.replace(recipe.model, checkpoint=str(done[1] / "float")),
    )
    assert dry_run(recipe)[-1].startswith("freeze: ")
    run = tmp_path / "run"
    result = run_recipe(recipe, run, quiet=True)
    assert bits.items() <= Run(run).read("bits.jsonl")[0]["bits"].items()
    assert result["gbitops"] <= result["budget_gbitops"]
    (run / "result.json").unlink()
    Run(run).checkpoints()[-1].unlink()
    again = run_recipe(recipe, run, resume=True, quiet=True)
    assert (again["bits"], again["top1"]) == (result["bits"], result["top1"])


def test_a_file_of_another_model_ends_a_recipe_before_it_trains(done: tuple[Path, Path], tmp_path: Path) -> None:
    path, _ = waves(tmp_path, toy_model(depth=2))
    with pytest.raises(ValueError, match=r"waves.json .*: it was made for another model$"):
        run_recipe(load_recipe(done[0], [f"init_bits={path}"]), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
