"""The allocation of an analysis: bits go where noise is measured, the budget holds, and a quantized model starts there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from qvit.budget import Budget, BudgetError
from qvit.components import all_sites
from qvit.convert import quantize
from qvit.cost import cost
from qvit.init_bits import allocate_bits, apply_init_bits
from qvit.quantizer import named_quantizers
from qvit.spec import FixedBits, LearnedBits, PerHead, PerTensor, Spec
from toy_models import uniform, vit


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
    with pytest.raises(BudgetError, match=r"the smallest allowed bits cost"):
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
            r"has 6 groups for blocks.0.attn.qkv.weight, the model has 3; .* use heads = PerHead$",
        ),
        (
            Spec(),
            {"blocks.7.attn.q": [2, 2]},
            r"has bits for blocks.7.attn.q, which the model has not: it was made for",
        ),
        (Spec(), {"blocks.0.attn.q": [2, 9]}, r"gives blocks.0.attn.q 9 bits; its spec allows 2 to 8$"),
        (uniform(3), {}, r"^the model has no learned bits that .* could start; use LearnedBits in its spec$"),
    ],
    ids=["groups", "unknown", "width", "fixed"],
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
