"""The folder that `qvit card` writes: what it says is what the run's files say, what it shows can be pasted, and it names no machine."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import yaml
from PIL import Image

import qvit_runtime
from qvit.card import write_card
from qvit.card.facts import Facts, read_facts
from qvit.card.text import readme
from qvit.data import DataConfig, resolve_data
from qvit.evaluation.paired import Paired
from qvit.methods.qvit_irm import QViTIRM
from qvit.pipeline.finished import read_result
from qvit.spec import FixedBits, Spec
from qvit.training.feature_distill import FeatureDistillation
from qvit.training.fit_config import FitConfig
from qvit_runtime.cli import main as runtime
from qvit_runtime.preprocess import load_image, preprocess

SIZES = {"model.qvit": 2048, "config.json": 1024}
pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def card(done: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The card of a run on digits, and a picture beside it that is no square."""
    folder = tmp_path_factory.mktemp("cards") / "tiny"
    write_card(done[1], folder, "apache-2.0", "mnist")
    noise = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    Image.fromarray(noise).resize((61, 43), Image.Resampling.BICUBIC).save(folder / "cat.jpg", quality=95)
    return folder


@pytest.fixture(scope="module")
def facts(done: tuple[Path, Path]) -> Facts:
    return read_facts(done[1])


def text_of(facts: Facts, no_onnx: str = "", **result: object) -> str:
    """The README of a run with other values in its result.json."""
    return readme(dataclasses.replace(facts, result={**facts.result, **result}), "mit", SIZES, no_onnx)


def blocks(folder: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)


def paste(folder: Path, *command: str) -> str:
    """Run a command in the folder as a reader would; returns what it printed."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(command, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_is_pasted_runs_and_agrees(card: Path) -> None:
    """Neither block may have torch; the ONNX block may have nothing of ours either."""
    pytest.importorskip("onnxruntime")
    with_runtime, with_onnx = blocks(card, "python")
    absent = "import sys; sys.modules.update(dict.fromkeys({}))\n".format
    runtime_says = paste(card, sys.executable, "-c", absent(["torch", "qvit"]) + with_runtime)
    onnx_says = paste(card, sys.executable, "-c", absent(["torch", "qvit", "qvit_runtime"]) + with_onnx)
    first = runtime_says.splitlines()[0].split()
    assert first[1] == onnx_says.strip()
    assert len(runtime_says.splitlines()) == 3
    lines = [line for block in blocks(card, "bash") for line in block.splitlines()]
    installs = [line for line in lines if line.startswith("pip install ")]
    assert len(installs) == 2
    assert len(lines) == 5
    said = {line: paste(card, "sh", "-c", line) for line in lines if line not in installs}
    answers = next(text for line, text in said.items() if " predict " in line).splitlines()
    assert answers[0] == "cat.jpg"
    assert answers[1].split()[-1] == first[1]


def test_the_onnx_block_prepares_images_as_the_program_does(
    card: Path, done: tuple[Path, Path], tmp_path: Path
) -> None:
    """A crop of less than the whole, on an image that is no square: nothing but the last bit of a float may differ."""
    run = shutil.copytree(done[1], tmp_path / "run")
    program = qvit_runtime.load(run / "model.qvit")
    how = dataclasses.replace(program.preprocess, crop=0.8, interpolation="bilinear")
    qvit_runtime.save(dataclasses.replace(program, preprocess=how), run / "model.qvit")
    write_card(run, tmp_path / "card", "mit")
    block = blocks(tmp_path / "card", "python")[1]
    prepare = (
        block[: block.index("session =")].replace("import onnxruntime\n", "").replace("cat.jpg", f"{card}/cat.jpg")
    )
    names: dict[str, np.ndarray] = {}
    exec(prepare, names)
    expected = preprocess(load_image(card / "cat.jpg"), how)
    np.testing.assert_allclose(names["pixels"].transpose(2, 0, 1), expected, rtol=0, atol=1e-6)


def test_front_matter(card: Path, done: tuple[Path, Path]) -> None:
    _, header, _ = (card / "README.md").read_text().split("---\n", 2)
    found = yaml.safe_load(header)
    assert (found["license"], found["library_name"], found["datasets"]) == ("apache-2.0", "qvit", ["mnist"])
    assert set(found["tags"]) >= {"qvit", "quantization", "onnx"}
    (result,) = found["model-index"][0]["results"]
    assert result["dataset"] == {"name": "mnist", "type": "mnist", "split": "validation"}
    (metric,) = result["metrics"]
    assert metric["value"] == pytest.approx(read_result(done[1])["top1_frozen"] / 100)


def test_the_numbers_are_those_of_the_result(card: Path, done: tuple[Path, Path]) -> None:
    text, result = (card / "README.md").read_text(), read_result(done[1])
    for key in ("top1", "top1_float", "top1_frozen", "agreement_frozen", "agreement_float", "average_weight_bits"):
        assert f"{result[key]:.2f}" in text
    assert f"{result['gbitops']:.4g} GBitOPs" in text
    assert f"{result['budget_gbitops']:.4g} GBitOPs" in text
    assert "80 images of `mnist`, split `validation`, which were not trained on" in text
    assert "points (95 % interval of these images)" in text
    assert f"{(card / 'model.onnx').stat().st_size / 1024:,.1f} KiB" in text
    assert "in float32 stay Add, Gelu, LayerNorm, Softmax, Tokens" in text
    assert "(img_size=28, patch_size=14, embed_dim=16, depth=1, num_heads=2), weights: random, then 0.5 epochs" in text
    assert "classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9;" in text
    assert "| calibration | 32 training images |" in text
    assert "batches of 32, distillation from the float model (0.5) |" in text


def test_bits_by_role(facts: Facts) -> None:
    """A row says of its role what result.json says of its tensors."""
    bits = facts.result["bits"]
    text = text_of(facts)
    q = [bits["blocks.0.attn.qkv.weight"]] * 6 if isinstance(bits["blocks.0.attn.qkv.weight"], int) else []
    q = (q or bits["blocks.0.attn.qkv.weight"])[:2]
    span = str(q[0]) if len(set(q)) == 1 else f"{min(q)} to {max(q)}"
    assert f"| q weight | 1 | {sum(q) / 2:.2f} | {span} | {'1' if len(set(q)) > 1 else ''} |" in text
    assert "| classifier weight | 1 | 8.00 | 8 |  |" in text


def test_heads_that_differ_are_listed(facts: Facts) -> None:
    buffers = dict(facts.program.buffers)
    q = buffers["blocks.0.attn.q"]
    assert q.grid is not None
    buffers[q.name] = dataclasses.replace(q, grid=dataclasses.replace(q.grid, bits=(2, 7)))
    program = dataclasses.replace(facts.program, buffers=buffers)
    text = text_of(dataclasses.replace(facts, program=program))
    assert "| q | 1 | 4.50 | 2 to 7 | 1 |" in text
    block = next(line for line in text.splitlines() if line.startswith("| blocks.0 |"))
    assert "| 2 7 |" in block


def test_config_is_timms(card: Path, done: tuple[Path, Path]) -> None:
    """timm makes the float architecture from it, with this preprocessing, and refuses to call random weights pretrained."""
    model = timm.create_model(f"local-dir:{card}", pretrained=False)
    data, program = resolve_data(DataConfig(dataset="digits"), model), qvit_runtime.load(card / "model.qvit")
    how = program.preprocess
    assert (data.mean, data.std, data.crop, data.interpolation) == (how.mean, how.std, how.crop, how.interpolation)
    assert (data.image_size, data.num_classes, len(model.blocks)) == (28, 10, 1)
    assert model.pretrained_cfg["label_names"] == [str(digit) for digit in range(10)]
    with pytest.raises(RuntimeError, match="No suitable checkpoints"):
        timm.create_model(f"local-dir:{card}", pretrained=True)
    ours = json.loads((card / "config.json").read_text())["qvit"]
    assert ours["recipe"]["fit"]["epochs"] == 2
    assert ours["result"]["top1_frozen"] == read_result(done[1])["top1_frozen"]


def test_the_artifact_is_that_of_the_run(card: Path, done: tuple[Path, Path]) -> None:
    assert (card / "model.qvit").read_bytes() == (done[1] / "model.qvit").read_bytes()
    assert runtime(["inspect", str(card / "model.qvit")]) == 0


def test_runs_that_say_less(facts: Facts) -> None:
    """No labels, no interval, no training, a collapse, other crops: the card says what is known and nothing else."""
    unlabelled = text_of(facts, top1=None, top1_float=None, top1_frozen=None)
    assert "had no labels, so accuracy is not known" in unlabelled
    assert "model-index" not in unlabelled
    assert "±" not in text_of(dataclasses.replace(facts, difference=None))
    difference = Paired(-1.234, 0.567, 80)
    assert "-1.23 ± 0.57 points" in text_of(dataclasses.replace(facts, difference=difference))
    assert "> **Do not use this model.** It collapsed: badly." in text_of(facts, collapse="collapsed: badly")
    four = Spec(FixedBits(4), FixedBits(4))
    fixed = dataclasses.replace(
        facts.recipe, method="lsq", quantize=four, budget=None, uniform_baseline=0, fit=FitConfig(epochs=0)
    )
    ptq = dataclasses.replace(facts, recipe=fixed)
    assert "| training | none: scales come from calibration |" in text_of(ptq, budget=None)
    assert "| budget that was given | none: the bit-widths were |" in text_of(ptq, budget=None)
    assert "| calibration | 160 training images |" in text_of(facts, calibration_images=160)
    features = FitConfig(epochs=1, accumulate=2, features=FeatureDistillation())
    guided = dataclasses.replace(fixed, method="qvit-irm", quantize=QViTIRM(), fit=FitConfig(epochs=1))
    unguided = dataclasses.replace(guided, quantize=QViTIRM(guide=0.0))
    for recipe, taught in (
        (dataclasses.replace(fixed, fit=features), "batches of 64, its features (1) |"),
        (guided, "batches of 32, similarities of its queries and keys, DGD (1) |"),
        (unguided, "batches of 32, no teacher |"),
    ):
        assert taught in text_of(dataclasses.replace(facts, recipe=recipe), budget=None)
    how = dataclasses.replace(facts.program.preprocess, crop_mode="squash", labels=("<b>a|b</b>", "c"))
    other = text_of(dataclasses.replace(facts, program=dataclasses.replace(facts.program, preprocess=how)))
    assert "`model.onnx` takes `image[None]` of the lines above" in other
    assert "<b>" not in other
    assert "There is no ONNX file here: of this reason." in text_of(facts, no_onnx="of this reason")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["qvit", "run", "/my/demo.toml", "--seed", "1"], "| command | `qvit run demo.toml --seed 1` |"),
        (["qvit.exe", "ptq", "deit_tiny"], "| command | `qvit ptq deit_tiny` |"),
        (["__main__.py", "compare", "a.toml"], "| command | `qvit compare a.toml` |"),
        (["__main__.py", "tests/card"], ""),  # of another package, pytest for one
        (["evidence.py", "--only", "headwise_w2a3"], ""),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_command_is_one_of_qvit_or_left_out(command: list[str], said: str, facts: Facts) -> None:
    text = text_of(dataclasses.replace(facts, provenance={**facts.provenance, "command": command}))
    assert said in text
    assert ("| command |" in text) == bool(said)


@pytest.mark.parametrize(
    ("train", "judged", "common"),
    [("", "", True), ("", "validation", True), ("train", "validation", False)],
    ids=["flat folder", "folder inside the other", "two folders"],
)
def test_calibration_on_the_images_that_judge_is_said(train: str, judged: str, common: bool, facts: Facts) -> None:
    """`qvit ptq` on a flat folder of images has nothing else to calibrate on."""
    data = dataclasses.replace(facts.recipe.data, dataset="images", train_split=train, eval_split=judged)
    fixed = Spec(FixedBits(4), FixedBits(4))
    recipe = dataclasses.replace(
        facts.recipe,
        data=data,
        method="lsq",
        quantize=fixed,
        budget=None,
        uniform_baseline=0,
        train_float=None,
        fit=FitConfig(epochs=0),
    )
    text = text_of(dataclasses.replace(facts, recipe=recipe, difference=None), top1=None, top1_frozen=None, budget=None)
    assert ("| calibration | 32 of the images that it was judged on |" in text) == common
    assert ("The scales were fitted to some of these images." in text) == common
    assert ("| calibration | 32 training images |" in text) != common


def test_names_on_the_hub_are_kept(facts: Facts) -> None:
    recipe = facts.recipe
    model = dataclasses.replace(recipe.model, name="hf-hub:someone/vit@v2", pretrained=True)
    there = dataclasses.replace(facts, recipe=dataclasses.replace(recipe, model=model, train_float=None))
    text = text_of(there)
    assert "\nbase_model: someone/vit\n" in text  # the hub knows repositories, not revisions
    assert "# someone/vit@v2, head-wise learned bits" in text
    assert "weights: of `someone/vit@v2`" in text
    pictures = text_of(dataclasses.replace(facts, dataset="someone/pictures@v1"))
    header = yaml.safe_load(pictures.split("---\n")[1])
    assert header["datasets"] == ["someone/pictures"]
    dataset = header["model-index"][0]["results"][0]["dataset"]
    assert dataset["type"] == dataset["name"] == "someone/pictures"
    assert dataset["revision"] == "v1"
    assert "80 images of `someone/pictures@v1`, split" in pictures
    timms = dataclasses.replace(recipe.model, pretrained=True)
    assert "weights: those of timm" in text_of(
        dataclasses.replace(facts, recipe=dataclasses.replace(recipe, model=timms, train_float=None))
    )
