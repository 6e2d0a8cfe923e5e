"""What the pictures of a report are made of: stretches, thinned logs, histograms, banks, places, colours."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import qvit_runtime
from qvit.evaluation.grid_histogram import codes_per_bar
from qvit.freezing.integer_layers import integer_weight
from qvit.methods import TSPTQ, FQViT, fqvit, tsptq
from qvit.network.convert import quantize
from qvit.quantizers.quantizer import named_quantizers
from qvit_runtime.integer_ops import LogIntSoftmax, QuantizeRegions
from toy_models import calibrated, images, swin, uniform, vit
from toy_programs import vit_program

pytest.importorskip("altair")
from qvit.report.artifact import read_artifact
from qvit.report.banks import read_banks
from qvit.report.chart_grids import grids
from qvit.report.chart_paths import looks, paths
from qvit.report.chart_tradeoff import tradeoff
from qvit.report.chart_training import training
from qvit.report.picture import Cast, Table, digits, domain
from qvit.report.read import read_run
from qvit.report.rows import side_by_side
from qvit.report.tensors import Place, place_of
from qvit.report.theme import DARK, DASHES, LIGHT, SHAPES, Theme
from qvit.spec import FixedBits, LearnedBits, MidRise, Spec
from toy_report import bits_at, groups, write_run


@pytest.mark.parametrize("times", [6, 240])
def test_stretches_of_bits_are_the_history(times: int, tmp_path: Path) -> None:
    run = read_run("run", write_run(tmp_path / "run", ["bits", "metrics"], steps=16))
    (picture,) = paths(run, "run0", times)
    tensors = picture.tables["groups"].column("tensor")
    assert len(tensors) == sum(groups().values())
    seen = {tensor: tensors.index(tensor) for tensor in tensors}
    steps = [0, 2, 3, 5, 6, 8] if times == 6 else range(9)
    for group, start, end, bits in picture.tables["stretches"].rows:
        name = tensors[group]  # type: ignore[call-overload]
        place = group - seen[name]  # type: ignore[operator]
        inside = [step for step in steps if start <= step < end]  # type: ignore[operator]
        assert {bits_at(step, 0)[name][place] for step in inside} == {bits}
    ends: dict[object, object] = {}
    for group, start, end, _ in picture.tables["stretches"].rows:
        assert ends.get(group, 0) == start  # no gap and no overlap, from 0 to the last step
        ends[group] = end
    assert set(ends.values()) == {16}
    assert picture.tables["locks"].rows == [(8,)]


def test_looks_shrink_with_the_number_of_groups(tmp_path: Path) -> None:
    run = read_run("run", write_run(tmp_path / "run", ["bits"], steps=4, depth=12))
    few, many = looks([run]), looks([run] * 40)
    assert few == 240 > many
    assert many == 200_000 // (40 * sum(groups(12).values()))


def test_long_logs_are_thinned_to_means_that_keep_the_last_step(tmp_path: Path) -> None:
    run = read_run("run", write_run(tmp_path / "run", ["metrics"], steps=20_000))
    pictures = {picture.key: picture for picture in training([run], Cast(["run"], legend=False))}
    table = pictures["training-loss"].tables["metrics"]
    assert len(table.rows) <= 9600
    assert table.column("step")[-1] == 20_000
    losses = [line["loss"] for line in run.metrics if "loss" in line]
    assert table.column("loss")[0] == pytest.approx(np.mean(losses[:3]), rel=1e-4)  # type: ignore[arg-type]
    assert "mean of up to 3 logged lines" in pictures["training-loss"].caption
    assert len(pictures["training-top1"].tables["evaluations"].rows) == 2


def test_the_budget_of_a_run_that_is_still_training_is_in_its_provenance(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", ["metrics", "recipe"])
    (folder / "provenance.json").write_text(json.dumps({"budget": {"gbitops": 0.04}}))
    pictures = {picture.key: picture for picture in training([read_run("run", folder)], Cast(["run"], legend=False))}
    assert pictures["training-gbitops"].tables["budgets"].rows == [("run", 0.04)]


def test_an_accuracy_of_zero_is_an_evaluation(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", ["metrics"], steps=4)
    with (folder / "metrics.jsonl").open("a") as log:
        log.write(json.dumps({"step": 5, "epoch": 1.25, "top1": 0.0}) + "\n" + json.dumps({"step": 6, "top1": None}))
    pictures = {picture.key: picture for picture in training([read_run("run", folder)], Cast(["run"], legend=False))}
    rows = pictures["training-top1"].tables["evaluations"].rows
    assert rows[-1] == ("run", 5, 1.25, 0.0)
    assert len(rows) == 3


@pytest.mark.parametrize("first", [True, False], ids=["activations-first", "plain"])
def test_accuracies_of_float_weights_are_called_so(first: bool, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", ["metrics"])
    with (folder / "metrics.jsonl").open("a") as log:
        log.write(json.dumps({"step": 50, "top1": 60.0, **({"float_weights": 1} if first else {})}) + "\n")
    pictures = {picture.key: picture for picture in training([read_run("run", folder)], Cast(["run"], legend=False))}
    assert ("first ones are of float weights" in pictures["training-top1"].caption) == first


def test_histograms_count_every_weight(tmp_path: Path) -> None:
    program = vit_program()
    qvit_runtime.save(program, tmp_path / "model.qvit")
    artifact = read_artifact(tmp_path / "model.qvit", {})
    for histogram in artifact.histograms:
        weight = program.weights[histogram.tensor]
        assert len(histogram.codes) == min(2**histogram.bits, 64)
        merged = codes_per_bar(histogram.bits)
        assert sum(histogram.codes) * merged == pytest.approx(100)
        if histogram.groups == 1:
            highest = int(np.argmax(histogram.codes))
            inside = (weight.codes.astype(int) - histogram.lowest) // merged == highest
            assert histogram.codes[highest] * merged == pytest.approx(inside.mean() * 100)
    rows = [h for h in artifact.histograms if h.tensor == "blocks.0.attn.qkv.weight"]
    assert [h.bits for h in rows] == program.weights[rows[0].tensor].bits.ravel().tolist()
    for found in artifact.ranges:
        grid = program.buffers[found.tensor].grid
        assert grid is not None
        step = (found.high - found.low) / (2**found.bits - 1)
        assert step == pytest.approx(grid.scale[found.group], rel=1e-5)


@pytest.mark.parametrize(
    "spec", [uniform(3), Spec(weights=FixedBits(2), weight_grid=MidRise())], ids=["3 bits", "no zero"]
)
def test_float_weights_are_shown_where_the_codes_are_theirs(spec: Spec, tmp_path: Path) -> None:
    layer = calibrated(vit(), spec).get_submodule("blocks.0.mlp.fc1")
    weight = integer_weight(layer)  # type: ignore[arg-type]
    program = vit_program()
    name = "blocks.0.mlp.fc1.weight"
    program.weights[name] = weight
    qvit_runtime.save(program, tmp_path / "model.qvit")
    own = layer.weight.detach()  # type: ignore[union-attr, operator]
    for values, drawn in ((own, True), (torch.randn(own.shape), False), (None, False)):
        tensors = {} if values is None else {name: values}
        found = [h for h in read_artifact(tmp_path / "model.qvit", tensors).histograms if h.tensor == name]  # type: ignore[arg-type]
        assert all((h.values is not None) == drawn for h in found)
        if drawn:
            bins = found[0].values
            assert bins is not None
            assert sum(bins.shares) * bins.width == pytest.approx(100)
            steps = own.numpy() / weight.scale / (2 if weight.midrise.any() else 1)
            assert found[0].lowest == (-1.5 if weight.midrise.any() else -4)
            assert (bins.low, bins.low + len(bins.shares) * bins.width) == pytest.approx((steps.min(), steps.max()))


def test_activations_are_drawn_as_the_file_has_them(tmp_path: Path) -> None:
    run = read_run("run", write_run(tmp_path / "run"))
    picture = next(picture for picture in grids(run, "run0") if picture.key == "run0-activations")
    table = picture.tables["groups"]
    tensors = json.loads((run.path / "activations.json").read_text())["tensors"]
    expected = [(name, tensor["signed"], group) for name, tensor in tensors.items() for group in tensor["groups"]]
    for row, (name, signed, group) in zip(table.records(), expected, strict=True):
        merged = codes_per_bar(group["bits"])
        assert row["tensor"] == name
        assert row["first"] == (-(2 ** (group["bits"] - 1)) if signed else 0) + (merged - 1) / 2
        assert row["codes"] == pytest.approx(group["codes"], rel=6e-3)
        assert (row["low"], row["width"]) == (group["low"], group["width"])
        assert row["values"] == pytest.approx(group["values"], rel=6e-3)
        assert f"{group['bits']} bits, {sum(group['clipped']):.2f} % clipped" in str(row["label"])
    assert "of 2 training images" in picture.caption
    panels = {(row["tensor"], row["label"]) for row in table.records()}
    assert len(panels) == len(expected)  # a label is a panel: no two groups of a tensor share one


def test_the_two_regions_of_a_two_scaled_code_are_one_range(tmp_path: Path) -> None:
    model = tsptq.quantize(vit(depth=1), TSPTQ(8, 6, rounds=1, candidates=4), quiet=True)
    tsptq.calibrate(model, [images(vit(), 4)])
    program = tsptq.freeze(model.eval())
    qvit_runtime.save(program, tmp_path / "model.qvit")
    ranges = read_artifact(tmp_path / "model.qvit", {}).ranges
    regions = [op.output for op in program.ops if isinstance(op, QuantizeRegions)]
    assert len(regions) == 2  # the attention map and the GELU output
    for name in regions:
        (found,) = (r for r in ranges if r.tensor == name)
        grid = program.buffers[name].grid
        assert grid is not None
        assert (found.group, found.groups, found.bits) == (0, 1, 6)
        assert found.low == pytest.approx(float(grid.offset[0]))
        assert found.high == pytest.approx(31 * float(grid.scale[1]))
        assert place_of(name, found.group, found.groups).head is None


def test_log_codes_have_no_place_on_an_axis_of_values(tmp_path: Path) -> None:
    model = fqvit.quantize(vit(depth=1), FQViT(), quiet=True)
    fqvit.calibrate(model, [images(vit(), 4)])
    program = fqvit.freeze(model.eval())
    folder = write_run(tmp_path / "run", [])
    qvit_runtime.save(program, folder / "model.qvit")
    run = read_run("run", folder)
    assert run.artifact is not None
    maps = {op.output for op in program.ops if isinstance(op, LogIntSoftmax)}
    shown = {r.tensor for r in run.artifact.ranges}
    assert len(maps) == 1
    assert shown == {activation["name"] for activation in run.artifact.description["activations"]} - maps
    said = "Without the attention maps: their code c stands for 2^-c."
    assert said in next(p.caption for p in grids(run, "run0") if p.key == "run0-activation-grids")
    others = read_run("run", write_run(tmp_path / "other", ["artifact"]))
    assert said not in next(p.caption for p in grids(others, "run0") if p.key == "run0-activation-grids")


def test_banks_know_the_bits_of_their_slots() -> None:
    state = {
        "blocks.0.a.weight_quantizer.log_scale": torch.log(torch.tensor([[4.0, 2.0, 1.0]])),
        "blocks.0.a.weight_quantizer.bit_width": torch.tensor([4]),
        "blocks.0.a.input_quantizer.log_scale": torch.log(torch.tensor([[8.0, 4.0]])),
        "blocks.0.a.input_quantizer.bit_width": torch.tensor([3, 2]),
        "blocks.0.b.input_quantizer.log_scale": torch.log(torch.tensor([[0.5]])),
        "blocks.0.b.input_quantizer.bit_width": torch.tensor([8]),
        "head.input_quantizer.log_scale": torch.log(torch.tensor([[2.0, 1.0]])),
        "head.input_quantizer.bit_width": torch.tensor([8]),
    }
    spec = Spec(
        weights=LearnedBits(3, 5),
        activations=FixedBits(4),
        edge=LearnedBits(7, 8, 8.0),
        overrides=(("blocks.0.a.input", LearnedBits(2, 3, 3.0)),),
    )
    found = [
        (b.tensor, b.group, b.in_use, {n: round(s, 4) for n, s in b.scales.items()}) for b in read_banks(state, spec)
    ]
    assert found == [
        ("blocks.0.a.weight", 0, 4, {3: 4.0, 4: 2.0, 5: 1.0}),
        ("blocks.0.a.input", 0, 3, {2: 8.0, 3: 4.0}),
        ("blocks.0.a.input", 1, 2, {2: 8.0, 3: 4.0}),
        ("blocks.0.b.input", 0, 8, {8: 0.5}),
        ("head.input", 0, 8, {7: 2.0, 8: 1.0}),
    ]


@pytest.mark.parametrize("make", [vit, swin])
def test_slots_of_banks_are_those_of_the_quantizers(make: Callable[[], nn.Module]) -> None:
    """`banks` reads from the spec which bits a tensor may have, by the rule that `convert` makes its quantizer by."""
    spec = Spec(
        weights=LearnedBits(3, 5),
        activations=LearnedBits(2, 4, 4.0),
        edge=LearnedBits(6, 8, 8.0),
        overrides=(
            ("*.fc1.*", LearnedBits(4, 8)),
            ("*.fc1.input", LearnedBits(5, 6, 6.0)),
            ("head*.input", FixedBits(7)),
        ),
    )
    model = quantize(make(), spec, quiet=True)
    slots = {bank.tensor: tuple(bank.scales) for bank in read_banks(model.state_dict(), spec)}
    assert slots == {name: tuple(q.candidates) for name, q in named_quantizers(model).items()}


@pytest.mark.parametrize(
    ("tensor", "group", "count", "expected"),
    [
        ("blocks.3.attn.qkv.weight", 4, 9, Place("3", "k weight", 1)),
        ("layers.1.blocks.0.attn.v", 2, 6, Place("1.0", "v", 2)),
        ("blocks.3.attn.v", 0, 1, Place("3", "attn.v", None)),
        ("blocks.3.attn.qkv.input", 0, 1, Place("3", "attn.qkv.input", None)),
        ("blocks.11.mlp.fc1.weight", 0, 1, Place("11", "mlp.fc1.weight", None)),
        ("blocks.3.mlp.fc2.input", 1, 4, Place("3", "mlp.fc2.input, part 2", None)),
        ("layers.1.downsample.reduction.input", 0, 1, Place("layers.1.downsample", "input", None)),
        ("patch_embed.proj.weight", 0, 1, Place("patch_embed", "weight", None)),
    ],
)
def test_places(tensor: str, group: int, count: int, expected: Place) -> None:
    assert place_of(tensor, group, count) == expected


def test_the_table_leaves_out_columns_that_no_run_fills(tmp_path: Path) -> None:
    run = read_run("run", write_run(tmp_path / "run", ["result"], seed=2))
    grid = side_by_side([run])
    assert "ms" not in grid.columns
    row = dict(zip(grid.columns, grid.rows[0], strict=True))
    assert (row["minus float"].text, row["minus float"].number) == ("-3.00", -3.0)
    assert row["budget"].text == "0.05 gbitops"
    assert row["images"].number == run.outcome.images  # type: ignore[union-attr]


def test_the_table_says_when_times_were_not_measured_alike(tmp_path: Path) -> None:
    runs = [read_run("one", write_run(tmp_path / "one")), read_run("two", write_run(tmp_path / "two", seed=1))]
    assert "ms" in side_by_side(runs).columns
    assert runs[1].bench is not None
    other = dataclasses.replace(runs[1], bench=dataclasses.replace(runs[1].bench, threads=7))
    assert "ms, NOT all measured alike" in side_by_side([runs[0], other]).columns


def test_networks_of_one_name_are_tasks_of_their_own(tmp_path: Path) -> None:
    """timm's factory makes a micro model and a large one of one name; neither belongs on the Pareto line of the other."""
    names = ("one", "two", "three")
    runs = [
        read_run(name, write_run(tmp_path / name, ["result"], model_args={"depth": depth, "img_size": [28, 28]}))
        for name, depth in zip(names, (1, 1, 2), strict=True)
    ]
    found = [picture for picture in tradeoff(runs, Cast(names, legend=False)) if "gbitops" in picture.key]
    assert [picture.tables["outcomes"].column("run") for picture in found] == [["one", "two"], ["three"]]
    assert "(depth=2, img_size=[28, 28]), " in found[1].title


def test_small_helpers() -> None:
    assert digits(123456.789) == 123460.0
    assert Table(("a", "b"), [(1, 2)]).records() == [{"a": 1, "b": 2}]
    low, high = domain([5.0, None]).to_dict()["domain"]
    assert low < 5 < high


# Linear RGB -> what each kind of colour blindness sees (Machado, Oliveira, Fernandes 2009, severity 1.0).
SIGHT = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_LMS = [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
          [0.0883024619, 0.2817188376, 0.6299787005]]  # fmt: skip
TO_LAB = [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
          [0.0259040371, 0.7827717662, -0.8086757660]]  # fmt: skip


def linear(color: str) -> np.ndarray:
    values = np.array([int(color[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    light = sorted(float(linear(color) @ [0.2126, 0.7152, 0.0722]) + 0.05 for color in (one, other))
    return light[1] / light[0]


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_survive_colour_blindness_and_have_contrast(theme: Theme) -> None:
    assert min(contrast(color, theme.background) for color in theme.palette) >= 3
    assert contrast(theme.text, theme.background) >= 7
    assert contrast(theme.quiet, theme.background) >= 4.5
    for matrix in SIGHT.values():
        seen = np.clip(np.array([linear(color) for color in theme.palette]) @ np.array(matrix).T, 0, 1)
        lab = np.cbrt(seen @ np.array(TO_LMS).T) @ np.array(TO_LAB).T
        apart = np.linalg.norm(lab[:, None] - lab[None], axis=-1) + np.eye(len(lab))
        assert apart.min() >= 0.13


def test_thirty_lines_and_forty_two_points_look_different() -> None:
    colors = len(LIGHT.palette)
    assert len({(n % colors, n % len(DASHES)) for n in range(30)}) == 30
    assert len({(n % colors, n % len(SHAPES)) for n in range(42)}) == 42
