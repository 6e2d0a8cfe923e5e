"""qvit ptq: from a run, a recipe and a timm name; with labels and without; errors of one line."""

from __future__ import annotations

import json
import os
import re
import shutil
from argparse import Namespace
from pathlib import Path

import pytest

from qvit.calibration.range_observers import Percentile
from qvit.cli import main
from qvit.cli.data import data_from
from qvit.data import DataConfig
from qvit.pipeline.finished import read_recipe, read_result


def ptq(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[dict, str]:
    """(JSON, what people read)"""
    assert main(["ptq", *arguments, "--json", "-"]) == 0
    out, err = capsys.readouterr()
    return json.loads(out), err


def test_from_a_float_run(done: tuple[Path, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    _, run = done
    out = tmp_path / "out"
    result, text = ptq(capsys, str(run / "float"), "--calibration-images", "32", "--out", str(out))
    assert result == read_result(out)
    assert (result["method"], result["images"], result["epochs"]) == ("PTQ MinMax W8A8", 80, 0)
    assert result["top1_float"] == read_result(run / "float")["top1"]
    assert f"top-1        {result['top1']:.2f} % (float" in text
    assert (
        f"wrote {out / 'result.json'} and {out / 'model.qvit'}\nnext: qvit-runtime inspect {out / 'model.qvit'}" in text
    )
    assert "blocks.0.attn.softmax" not in text
    recipe = read_recipe(out)
    assert (recipe.calibration, recipe.data.eval_batch_size, recipe.fit.epochs) == (32, 32, 0)
    assert result["calibration_images"] == 32


def test_bits_observer_and_placement(
    done: tuple[Path, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """From a recipe with its own weights."""
    recipe, run = done
    changed = recipe.with_name("weights.toml")
    changed.write_text(recipe.read_text().replace("[model]", f'[model]\ncheckpoint = "{run / "float"}"'))
    choices = ["--weight-bits", "2", "--activation-bits", "3", "--observer", "percentile", "--max-images", "40"]
    out = str(tmp_path / "out")
    result, text = ptq(capsys, str(changed), *choices, "--calibration-images", "40", "--placement", "--out", out)
    assert result["calibration_images"] == 64  # two batches of the recipe's 32
    assert (result["method"], result["images"]) == ("PTQ Percentile W2A3", 40)
    assert read_recipe(out).quantize.observer == Percentile()  # type: ignore[union-attr]
    assert result["bits"]["blocks.0.mlp.fc1.weight"] == 2
    assert re.search(r"blocks.0.attn.softmax +float", text)
    assert result["collapse"] is None  # the float model of two epochs is at chance itself
    assert "collapsed: " not in text


def test_a_flat_folder_serves_agreement(
    done: tuple[Path, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    recipe, run = done
    flat = recipe.parent / "digits" / "train" / "3"
    result, text = ptq(capsys, str(run / "float"), "--data", str(flat), "--out", str(tmp_path / "out"))
    assert (result["images"], result["top1"], result["collapse"]) == (16, None, None)
    assert result["agreement_float"] > 80
    assert "top-1" not in text
    assert "same class" in text


def test_an_image_beside_the_splits_does_not_hide_them(
    done: tuple[Path, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A folder with a preview in it still has its classes, and its training images do not judge."""
    folder = shutil.copytree(done[0].parent / "digits", tmp_path / "digits")
    shutil.copy(next((folder / "train" / "3").iterdir()), folder / "preview.png")
    result, _ = ptq(capsys, str(done[1] / "float"), "--data", str(folder), "--out", str(tmp_path / "out"))
    assert (result["images"], result["top1_float"]) == (80, read_result(done[1] / "float")["top1"])


def test_a_run_on_relative_paths_is_read_from_another_directory(
    done: tuple[Path, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(done[0].parent)
    (tmp_path / "names.txt").write_text("\n".join("0123456789"))
    class_map = os.path.relpath(tmp_path / "names.txt")
    options = ["--data", "./digits", "--class-map", class_map, "--calibration-images", "16"]
    result, _ = ptq(capsys, str(done[1] / "float"), *options, "--out", str(tmp_path / "out"))
    monkeypatch.chdir(tmp_path)
    assert main(["eval", "out", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["top1"] == result["top1"]


def test_another_data_set_does_not_take_a_folder_of_images_for_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    images = DataConfig(root="/images")
    given = Namespace(data="hfds/ORG/NAME", split=None, class_map=None, image_column=None, label_column="fine_label")
    assert (data_from(given, images).image_column, data_from(given, images).label_column) == ("image", "fine_label")
    assert (data_from(given, images).dataset, data_from(given, images).root) == ("hfds/ORG/NAME", "")
    cached = DataConfig(dataset="hfds/ORG/OTHER", root="/cache")
    assert data_from(given, cached).root == "/cache"
    given.data = "digits/train"  # a folder, which begins like the digits of the wheel
    assert data_from(given, images).root == str(tmp_path / "digits" / "train")
    given.data = "hfds/./parquet"
    assert data_from(given, cached).dataset == f"hfds/{tmp_path / 'parquet'}"
    (tmp_path / "pets").mkdir()
    given.data = "hfds/pets"
    assert data_from(given, cached).dataset == f"hfds/{tmp_path / 'pets'}"


def test_a_process_without_a_result_says_nothing(
    done: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several processes `run_recipe` gives the result to one."""
    monkeypatch.setattr("qvit.cli.ptq.run_recipe", lambda *_, **__: {})
    monkeypatch.setattr("qvit.cli.ptq.is_main", lambda: False)
    assert main(["ptq", str(done[1] / "float")]) == 0
    assert capsys.readouterr().out == ""


def test_default_directory_and_resume(
    done: tuple[Path, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [str(done[1] / "float"), "--calibration-images", "32", "--method", "lsq"]
    result, _ = ptq(capsys, *arguments)
    assert read_result("runs/ptq_float_lsq_w8a8") == result
    assert main(["ptq", *arguments]) == 2
    assert "is not empty; choose another --out, or continue it with --resume" in capsys.readouterr().err
    assert ptq(capsys, *arguments, "--resume")[0] == result
    assert main(["ptq", *arguments, "--resume", "--max-images", "40"]) == 2
    text = "qvit: runs/ptq_float_lsq_w8a8 was judged on 80 images, and now there are 40; choose another --out, or evaluate on the same"
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["vit_tiny_patch16_224"], r"qvit: vit_tiny_patch16_224 does not say which images to read; give --data"),
        (["RUN"], r"qvit: .* is a run of method 'qvit'; give a float run, such as .*float"),
        (["FLOAT", "--weight-bits", "1"], r"qvit: PostTraining.weight_bits is 1; bit-widths go from 2 to 8"),
        (
            ["FLOAT", "--method", "tsptq", "--observer", "mse"],
            r"qvit: method 'tsptq' has no observer to choose; these have: .*ptq",
        ),
        (["FLOAT", "--calibration-images", "0"], r"qvit: --calibration-images is 0; it takes at least one image"),
        (["."], r"qvit: . has no recipe.json, so it is no run directory"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors(
    arguments: list[str],
    text: str,
    done: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"RUN": str(done[1]), "FLOAT": str(done[1] / "float")}
    assert main(["ptq", *(names.get(argument, argument) for argument in arguments)]) == 2
    err = capsys.readouterr().err
    assert re.match(text, err), err
    assert err.count("\n") == 1


def test_classes_that_are_other_outputs_need_a_map(
    done: tuple[Path, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Five of the ten digits: ptq, analyze and eval of a model refuse to number them 0 to 4; an artifact has their names."""
    recipe, run = done
    some = tmp_path / "some"
    for split in ("train", "validation"):
        for digit in "56789":
            shutil.copytree(recipe.parent / "digits" / split / digit, some / split / digit)
    (tmp_path / "names.txt").write_text("\n".join("0123456789"))
    data, class_map = ["--data", str(some)], ["--class-map", str(tmp_path / "names.txt")]
    out = ["--out", str(tmp_path / "ptq")]
    ptq_verb = ["ptq", str(run / "float"), "--calibration-images", "16", *out]
    evaluation = ["eval", str(run / "float")]
    for verb in (ptq_verb, ["analyze", str(run / "float"), "--out", str(tmp_path / "analysis")], evaluation):
        assert main([*verb, *data]) == 2
        text = r"qvit: split '\w+' has 5 classes \(5, 6, 7, ...\), but the model has 10 outputs: .* \(--class-map\)"
        assert re.match(text, capsys.readouterr().err)
    result, _ = ptq(capsys, *ptq_verb[1:], *data, *class_map)
    assert main([*evaluation, *data, *class_map, "--json", "-"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert (result["images"], result["top1_float"]) == (40, table["top1"])
    assert main(["eval", str(tmp_path / "ptq"), "--json", "-"]) == 0  # the run remembers the map
    assert json.loads(capsys.readouterr().out)["top1"] == result["top1"]
    whole = ["eval", str(run / "float"), "--json", "-"]
    shown = []
    for digit in "0123456789":  # the labels are those that the whole evaluation split has
        one = tmp_path / "one" / digit
        shutil.copytree(recipe.parent / "digits" / "validation" / digit, one / digit)
        assert main([*whole, "--data", str(one), "--split", "", *class_map]) == 0
        shown.append(json.loads(capsys.readouterr().out)["top1"])
    assert main(whole) == 0
    assert sum(shown) / 10 == pytest.approx(json.loads(capsys.readouterr().out)["top1"])
