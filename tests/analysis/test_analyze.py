"""An analysis of toy models: the planted head is found, numbers agree with direct ones, a kill changes nothing."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from qvit.analysis import LOG, RESULT, analyze
from qvit.analysis.components import select
from qvit.analysis.config import AnalysisConfig
from qvit.analysis.data import AnalysisData
from qvit.analysis.finetune import Finetuning
from qvit.analysis.gates import open_gates
from qvit.analysis.instrument import Instrument
from qvit.data import Skips, Splits
from qvit.evaluation.paired import paired
from qvit.quantizers.quantizer import named_quantizers
from toy_analysis import BATCH, QUICK, analysis_data, instrument
from toy_models import images, swin, vit
from toy_planted import HEADS, planted
from toy_training import toy_data


def row(result: dict, mode: str, name: str, bits: int = 2) -> dict:
    found = [r for r in result["rows"] if (r["mode"], r["name"], r["bits"]) == (mode, name, bits)]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("head", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_the_planted_head_is_found(head: int, tmp_path: Path) -> None:
    """It is first of the four alone, and first in what leaving it float wins back; its sites are the noisiest by role."""
    model = planted(head)
    config = dataclasses.replace(QUICK, bits=(2,), images=128)
    result = analyze(model, analysis_data(model, 128), config, tmp_path, quiet=True)
    name = f"blocks.0 head {head}"
    heads = [f"blocks.0 head {other}" for other in range(HEADS)]
    for mode, value in (("alone", "loss"), ("all but", "gain")):
        assert max(heads, key=lambda other, m=mode, v=value: row(result, m, other)[v]) == name
        assert row(result, mode, name)["rank"] == 1
    assert min(heads, key=lambda other: row(result, "alone", other)["logit_sqnr_db"]) == name
    for site in result["sites"]:
        if site["tensor"] in ("blocks.0.attn.v", "blocks.0.attn.proj.input", "blocks.0.attn.proj.weight"):
            assert min(range(HEADS), key=site["logit_sqnr_db"].__getitem__) == head, site


@pytest.mark.parametrize(
    "make",
    [lambda: vit(depth=1), pytest.param(lambda: swin(img_size=8, window_size=2), marks=pytest.mark.slow)],
    ids=["vit", "swin"],
)
def test_numbers_against_a_direct_measurement(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    """Whole forward passes over all images at once, without prefix, records and batches."""
    model = make()
    data = analysis_data(model)
    result = analyze(model, data, QUICK, tmp_path, quiet=True)
    found = instrument(model)
    pixels = torch.cat([batch for batch, _ in data.evaluation])
    labels = torch.cat([batch for _, batch in data.evaluation])

    def logits(selection: object, bits: int, edge_bits: int) -> Tensor:
        found.set_bits(bits, edge_bits)
        open_gates(found.gates, selection)  # type: ignore[arg-type]
        with torch.no_grad():
            return found.model(pixels)

    reference = logits({}, 3, 3)
    everything = logits(select(found.sites), 3, 8)
    for name in ("GELU output", "classifier", found.subjects[-1].name):
        subject = next(s for s in found.subjects if s.name == name)
        alone = logits(subject.selection, 3, 3)
        company = logits(select(set(found.sites) - set(subject.sites)), 3, 8)
        mine, others = row(result, "alone", name, 3), row(result, "all but", name, 3)
        right = [(t.argmax(1) == labels).numpy() for t in (reference, alone, company, everything)]
        loss, gain = paired(right[0], right[1]), paired(right[2], right[3])
        assert mine["loss"] == pytest.approx(loss.difference, abs=1e-4)
        assert mine["loss_half_width"] == pytest.approx(loss.half_width, abs=1e-4)
        assert others["gain"] == pytest.approx(gain.difference, abs=1e-4)
        assert mine["agreement"] == pytest.approx(100 * float((alone.argmax(1) == reference.argmax(1)).float().mean()))
        noise = (alone - reference).square().sum() / reference.square().sum()
        assert mine["logit_sqnr_db"] == pytest.approx(float(-10 * noise.log10()), abs=1e-2)
        assert others["logit_sqnr_db"] != mine["logit_sqnr_db"]
    assert result["top1_float"] == 100.0
    assert [r["bits"] for r in result["everything"]] == [2, 3]
    one_more = next(site for site in result["sites"] if site["tensor"].endswith("mlp.fc2.input") and site["bits"] == 3)
    two = next(s for s in result["sites"] if s["tensor"] == one_more["tensor"] and s["bits"] == 2)
    assert 3 < one_more["tensor_sqnr_db"][0] - two["tensor_sqnr_db"][0] < 9  # a bit is worth about 6 dB


def test_more_bits_lose_less(tmp_path: Path) -> None:
    model = vit(depth=1)
    config = dataclasses.replace(QUICK, bits=(8, 2))
    result = analyze(model, analysis_data(model), config, tmp_path, quiet=True)
    rows = [r for r in result["rows"] if r["mode"] == "alone"]
    for fine in (r for r in rows if r["bits"] == 8):
        coarse = next(r for r in rows if (r["kind"], r["name"], r["bits"]) == (fine["kind"], fine["name"], 2))
        assert fine["logit_sqnr_db"] > coarse["logit_sqnr_db"] + 15
        assert fine["tensor_sqnr_db"] > coarse["tensor_sqnr_db"] + 15


class KilledError(Exception):
    """Stands for a kill."""


class Dying:
    """The evaluation batches, up to a kill."""

    def __init__(self, batches: list[tuple[Tensor, Tensor]], after: int) -> None:
        self.batches, self.left = batches, after

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.batches:
            if not self.left:
                raise KilledError
            self.left -= 1
            yield batch


@pytest.mark.parametrize("after", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_a_resumed_analysis_is_an_unbroken_one(after: int, tmp_path: Path) -> None:
    """Two batches at two bit-widths; killed after one and after three, with a line cut off on top."""
    model = vit(depth=1)
    data = analysis_data(model)
    whole = analyze(model, data, QUICK, tmp_path / "whole", quiet=True)
    broken = tmp_path / "broken"
    with pytest.raises(KilledError):
        analyze(
            model, dataclasses.replace(data, evaluation=Dying(list(data.evaluation), after)), QUICK, broken, quiet=True
        )
    assert len((broken / LOG).read_text().splitlines()) == after + 1
    with open(broken / LOG, "a") as file:
        file.write('{"step": 9, "bits": 3, "ba')
    with pytest.raises(
        FileExistsError, match=r"holds an analysis; continue it with --resume, or choose another --out$"
    ):
        analyze(model, data, QUICK, broken, quiet=True)
    assert analyze(model, data, QUICK, broken, resume=True, quiet=True) == whole
    for name in (LOG, RESULT):
        assert (broken / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_resume_with_other_settings_is_refused(tmp_path: Path) -> None:
    model = vit(depth=1)
    analyze(model, analysis_data(model), dataclasses.replace(QUICK, bits=(2,)), tmp_path, quiet=True)
    with pytest.raises(
        ValueError, match=r"holds an analysis with another bits, weights; resume it with the same settings"
    ):
        analyze(vit(1, depth=1), analysis_data(model), QUICK, tmp_path, resume=True, quiet=True)


@pytest.mark.parametrize(
    ("bits", "budget", "text"),
    [
        (
            (2, 3),
            1e-6,
            r"^a budget of 1e-06 gbitops cannot be met: with .* costs 0\.\d+, .*; give a budget in that range or",
        ),
        ((2, 3), -1.0, r"^a budget must be positive; given gbitops = -1.0$"),
        ((3,), 1.0, r"^an allocation chooses between bit-widths: give --bits two or more of them, such as 2,3,4$"),
    ],
    ids=["impossible", "negative", "one width"],
)
def test_an_allocation_that_cannot_be_is_refused_before_anything_is_measured(
    bits: tuple[int, ...], budget: float, text: str, tmp_path: Path
) -> None:
    model = vit(depth=1)
    config = dataclasses.replace(QUICK, bits=bits)
    with pytest.raises(ValueError, match=text):
        analyze(model, analysis_data(model), config, tmp_path, budget_gbitops=budget, quiet=True)
    assert not list(tmp_path.iterdir())


def test_images_without_labels_are_judged_by_the_float_model(tmp_path: Path) -> None:
    model = vit(depth=1)
    config = dataclasses.replace(QUICK, bits=(2,))
    labelled = analyze(model, analysis_data(model), config, tmp_path / "a", quiet=True)
    bare = analyze(model, analysis_data(model, labelled=False), config, tmp_path / "b", quiet=True)
    assert (bare["judged_by"], bare["labelled"], bare["top1_float"]) == ("float", 0, None)
    assert bare["rows"] == labelled["rows"]  # there the labels are the float model's classes


@pytest.mark.parametrize(("asked", "there"), [(BATCH + 3, BATCH + 3), (5 * BATCH, 2 * BATCH)], ids=["cut", "short"])
def test_as_many_images_are_measured_as_are_recorded(asked: int, there: int, tmp_path: Path) -> None:
    """A stream has whole batches and may be shorter than it was asked to be."""
    model = vit(depth=1)
    data = dataclasses.replace(analysis_data(model), images=asked)
    result = analyze(model, data, dataclasses.replace(QUICK, bits=(2,), images=asked), tmp_path, quiet=True)
    assert (result["images"], result["labelled"]) == (there, there)
    assert result["verdict"][0].startswith(f"float top-1 100.00 % on {there} images")
    assert sum(images.shape[0] for images, _ in data.measured) == there


@pytest.mark.parametrize(("asked", "seen"), [(5, 5), (BATCH, BATCH), (40, 2 * BATCH)], ids=["cut", "whole", "short"])
def test_scales_are_fitted_to_the_images_that_were_asked_for(asked: int, seen: int, tmp_path: Path) -> None:
    model = vit(depth=1)
    pixels = images(model, 2 * BATCH, seed=7)
    batches = [(part, torch.full((BATCH,), -1)) for part in pixels.split(BATCH)]
    data = dataclasses.replace(analysis_data(model), calibration=batches)
    config = dataclasses.replace(QUICK, bits=(2,), calibration_images=asked)
    assert analyze(model, data, config, tmp_path, quiet=True)["calibration_images"] == seen
    cut = [(part, torch.full((len(part),), -1)) for part in pixels[:seen].split(BATCH)]
    alone = dataclasses.replace(data, calibration=cut)
    quantizers = [named_quantizers(Instrument(model, each, config).model) for each in (data, alone)]
    for name, quantizer in quantizers[0].items():
        assert torch.equal(quantizer.log_scale, quantizers[1][name].log_scale), name


def test_logits_that_are_not_finite() -> None:
    """Of weights that calibration takes: it looks at each of them, and not at what they add up to."""
    model = vit(depth=1)
    found = instrument(model)
    with torch.no_grad():
        found.model.get_parameter("head.bias")[0] = float("inf")
    with pytest.raises(FloatingPointError, match=r"gave NaN or infinite logits; check the weights of the model$"):
        found.measure(images(model, 2), torch.zeros(2), 2, lambda _: None)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"bits": (1, 3)}, r"^bits are 1,3; give different widths from 2 to 8, such as 2,3,4$"),
        ({"bits": (3, 3)}, r"^bits are 3,3; give different"),
        ({"bits": ()}, r"^bits are none; give different"),
        ({"images": 1}, r"^images is 1; it must be at least 2$"),
        ({"finetune_steps": -1}, r"^finetune_steps is -1; it must be at least 0$"),
    ],
)
def test_settings_that_make_no_sense(changes: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        AnalysisConfig(**changes)


# Training.


def trainable(model: nn.Module) -> AnalysisData:
    """The toy training run's data, 96 images to train and to measure on."""
    toy = toy_data(mixup=0.0)
    pixels = [images(model, BATCH, seed=7)]
    splits = Splits(toy.train, toy.order, len(toy.order), pixels, toy.eval, (), 96, 96, Skips(0))  # type: ignore[arg-type]
    calibration = [(pixels[0], torch.full((BATCH,), -1))]
    return AnalysisData(calibration, toy.eval, 96, 32, toy.config, splits)


def test_trained_components(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of trained variants stand beside the others, their reference is trained alike, and a resume adds nothing."""
    model = vit(depth=1)
    data = trainable(model)
    config = AnalysisConfig(bits=(2,), images=96, calibration_images=BATCH, site_images=BATCH, finetune_steps=4)
    begin = Finetuning.__init__

    def fewer(self: Finetuning, *arguments: object) -> None:
        begin(self, *arguments)  # type: ignore[arg-type]
        self.components = [subject for subject in self.components if subject.name == "fc1 weight"]

    monkeypatch.setattr(Finetuning, "__init__", fewer)
    result = analyze(model, data, config, tmp_path, quiet=True)
    trained = {r["mode"]: r for r in result["rows"] if r["finetune_steps"] == 4}
    assert set(trained) == {"alone", "all but"}
    untrained = next(r for r in result["rows"] if (r["mode"], r["name"]) == ("alone", "fc1 weight"))
    assert trained["alone"]["logit_sqnr_db"] != untrained["logit_sqnr_db"]
    assert trained["alone"]["tensor_sqnr_db"] == untrained["tensor_sqnr_db"]  # that of the scales before training
    assert [r["finetune_steps"] for r in result["everything"]] == [0, 4]
    before = (tmp_path / LOG).read_bytes()
    assert analyze(model, data, config, tmp_path, resume=True, quiet=True) == result
    assert (tmp_path / LOG).read_bytes() == before
    records = [json.loads(line) for line in before.decode().splitlines()]
    reference = next(r for r in records if r.get("finetuned") == "float")
    assert reference["signal"] != sum(r["signal"] for r in records if "batch" in r)  # the float model was trained, too
    assert [r["finetuned"] for r in records if "finetuned" in r] == [
        "float",
        "everything",
        "alone component fc1 weight",
        "all but component fc1 weight",
    ]


def test_training_needs_labels(tmp_path: Path) -> None:
    model = vit(depth=1)
    with pytest.raises(ValueError, match=r"^--finetune-steps needs labels to train on, and these images have none"):
        analyze(model, analysis_data(model), dataclasses.replace(QUICK, finetune_steps=1), tmp_path)
