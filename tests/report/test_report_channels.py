"""Tensors whose groups are channels: one histogram and one range, however narrow the network, and no two panels of one name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import qvit_runtime
from qvit.evaluation.activation_histogram import ACTIVATIONS, activation_histograms
from qvit.freezing.freeze import freeze
from qvit.methods import FQViT, IViT, fqvit, ivit
from qvit.spec import FixedBits, PerChannel, Spec
from toy_models import calibrated, images, vit

pytest.importorskip("altair")
from qvit.report.activations import activations_of
from qvit.report.artifact import read_artifact
from qvit.report.chart_grids import grids
from qvit.report.picture import Picture
from qvit.report.read import read_run
from qvit.report.run import Run
from toy_report import write_run


def run_of(program: qvit_runtime.Program, folder: Path) -> Run:
    """A run directory with a program and how its activations lie on their grids."""
    write_run(folder, [])
    qvit_runtime.save(program, folder / "model.qvit")
    found = activation_histograms(program, images(vit(), 2).numpy())
    (folder / ACTIVATIONS).write_text(json.dumps(found))
    return read_run("run", folder)


def fq_vit() -> qvit_runtime.Program:
    model = fqvit.quantize(vit(depth=1), FQViT(), quiet=True)
    fqvit.calibrate(model, [images(vit(), 4)])
    return fqvit.freeze(model.eval())


def i_vit() -> qvit_runtime.Program:
    model = ivit.quantize(vit(depth=1), IViT())
    ivit.calibrate(model, [images(vit(), 4)])
    return ivit.freeze(model.eval())


def per_channel() -> qvit_runtime.Program:
    spec = Spec(FixedBits(3), FixedBits(4), weight_scale=PerChannel())
    return freeze(calibrated(vit(depth=1), spec).eval())


def pictures(run: Run) -> dict[str, Picture]:
    return {picture.key: picture for picture in grids(run, "run0")}


@pytest.mark.parametrize("make", [fq_vit, i_vit, per_channel])
def test_no_two_panels_of_a_tensor_have_one_name(make: object, tmp_path: Path) -> None:
    found = pictures(run_of(make(), tmp_path / "run"))  # type: ignore[operator]
    for name, table in (("weights", "groups"), ("activations", "groups"), ("activation-grids", "ranges")):
        rows = found[f"run0-{name}"].tables[table].records()
        places = [(row["tensor"], row["label"], row.get("role")) for row in rows]
        assert len(set(places)) == len(places)
        assert not [label for _, label, _ in places if "None" in str(label)]


def test_rows_of_a_weight_that_have_scales_of_their_own_are_channels(tmp_path: Path) -> None:
    program = per_channel()
    qvit_runtime.save(program, tmp_path / "model.qvit")
    found = {h.tensor: h for h in read_artifact(tmp_path / "model.qvit", {}).histograms}
    fc1 = program.weights["blocks.0.mlp.fc1.weight"]
    assert fc1.bits.size == 64  # fewer than a large network has heads in its qkv weight
    assert (found["blocks.0.mlp.fc1.weight"].groups, found["blocks.0.mlp.fc1.weight"].group) == (0, 3)
    proj = [h for h in read_artifact(tmp_path / "model.qvit", {}).histograms if h.tensor == "blocks.0.attn.proj.weight"]
    assert [h.groups for h in proj] == [2, 2]  # its columns are heads


def test_channels_of_an_activation_are_one_range_and_one_histogram(tmp_path: Path) -> None:
    program = fq_vit()
    run = run_of(program, tmp_path / "run")
    assert run.artifact is not None
    assert run.activations is not None
    name = "blocks.0.norm1.input"
    grid = program.buffers[name].grid
    assert grid is not None
    assert grid.groups == 16
    (reach,) = (r for r in run.artifact.ranges if r.tensor == name)
    assert (reach.groups, reach.bits) == (0, 8)
    assert reach.low == pytest.approx(float((grid.qmin * grid.scale + grid.offset).min()))
    assert reach.high == pytest.approx(float((grid.qmax * grid.scale + grid.offset).max()))
    (histogram,) = (h for h in run.activations.histograms if h.tensor == name)
    groups = json.loads((run.path / ACTIVATIONS).read_text())["tensors"][name]["groups"]
    assert histogram.codes == pytest.approx(np.mean([group["codes"] for group in groups], 0))
    assert histogram.clipped == pytest.approx(np.mean([group["clipped"] for group in groups], 0))
    assert histogram.values is not None
    assert histogram.values.low == min(group["low"] for group in groups)
    shares = sum(sum(group["values"]) for group in groups) / len(groups)
    assert sum(histogram.values.shares) == pytest.approx(shares)
    table = pictures(run)["run0-activations"].tables["groups"].records()
    label = next(str(row["label"]) for row in table if row["tensor"] == name)
    assert label == f"channels of 8 bits, {sum(histogram.clipped or ()):.2f} % clipped"


def test_bins_of_channels_are_added_where_they_lie() -> None:
    def channel(bits: int, low: float, *values: float) -> dict[str, object]:
        return {"bits": bits, "codes": [100], "clipped": [4, 2], "low": low, "width": 0.5, "values": values}

    groups = [channel(4, -1.0, 10, 20), channel(4, 0.0, 30), channel(3, 5.0, 8), channel(4, 0.5)]
    record = {"images": 1, "tensors": {"blocks.0.norm1.input": {"signed": False, "groups": groups}}}
    three, four = activations_of(record).histograms
    assert (three.bits, three.groups, three.values and three.values.shares) == (3, 0, (8,))
    assert four.values is not None
    assert (four.values.low, four.values.shares) == (-1.0, pytest.approx((10 / 3, 20 / 3, 10)))
    assert four.clipped == (4, 2)


def test_the_codes_of_the_fused_qkv_of_ivit_are_its_parts(tmp_path: Path) -> None:
    rows = pictures(run_of(i_vit(), tmp_path / "run"))["run0-activation-grids"].tables["ranges"].records()
    found = [(row["role"], row["label"]) for row in rows if row["tensor"] == "blocks.0.attn.qkv.codes"]
    assert found == [("attn.q", "0"), ("attn.k", "0"), ("attn.v", "0")]
