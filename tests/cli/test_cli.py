"""The command line: one table for everything, prices, and errors of one line."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
from safetensors.torch import save_file

import qvit
import qvit_runtime
from qvit.cli import main
from qvit.pipeline.finished import load, read_result
from toy_pipeline import UNIFORM3


def json_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert main([*arguments, "--json", "-"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("model", "weight", "activation", "expected"),
    [
        ("deit_tiny_patch16_224", 4, 4, 21.455),
        ("deit_tiny_patch16_224", 3, 3, 12.883),
        pytest.param("deit_small_patch16_224", 4, 4, 76.375, marks=pytest.mark.slow),
        pytest.param("deit_base_patch16_224", 4, 4, 286.607, marks=pytest.mark.slow),
    ],
)
def test_cost_oracle(
    model: str, weight: int, activation: int, expected: float, capsys: pytest.CaptureFixture[str]
) -> None:
    found = json_of(capsys, "cost", model, "--weight-bits", str(weight), "--activation-bits", str(activation))
    assert round(found["gbitops"], 3) == expected


def test_cost_of_a_run(done: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    found = json_of(capsys, "cost", str(done[1]))
    assert found["gbitops"] == read_result(done[1])["gbitops"]
    assert json_of(capsys, "cost", str(done[1] / "uniform3"))["gbitops"] == pytest.approx(UNIFORM3)
    assert main(["cost", str(done[1]), "--weight-bits", "8", "--num-classes", "5"]) == 2
    text = "is a run, which has bits and classes of its own; leave --weight-bits, --num-classes out"
    assert text in capsys.readouterr().err


def test_cost_of_a_recipe_is_that_of_its_model_and_what_its_budget_means(
    done: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model that timm has no name for, quantized as its recipe says: 8 bits at the edges, what is learned at the given ones."""
    path = tmp_path / "my.toml"
    path.write_text(done[0].read_text().replace(f"gbitops = {UNIFORM3!r}", "uniform = 3"))
    found = json_of(capsys, "cost", str(path), "--weight-bits", "3", "--activation-bits", "3")
    assert found["gbitops"] == found["budget"]["gbitops"] == pytest.approx(UNIFORM3)
    least, most = found["reach"]["gbitops"]
    assert least < UNIFORM3 < most
    assert main(["cost", str(path), "--weight-bits", "2", "--activation-bits", "4"]) == 0
    lines = {line[:24].strip(): line[25:] for line in capsys.readouterr().out.splitlines()}
    assert lines["budget"] == f"{UNIFORM3:.5g} gbitops"
    assert lines["learned bits can cost"] == f"{least:.5g} to {most:.5g} gbitops"
    weights, activations = (float(lines[f"average_{kind}_bits"]) for kind in ("weight", "activation"))
    assert 2 < weights < found["average_weight_bits"]
    assert found["average_activation_bits"] < activations


def test_cost_of_a_recipe_with_another_budget(done: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    found = json_of(capsys, "cost", str(done[0]), "--set", f"budget.gbitops={2 * UNIFORM3!r}")
    assert found["budget"]["gbitops"] == pytest.approx(2 * UNIFORM3)


def test_cost_of_a_float_recipe_is_that_of_its_model_quantized_uniformly(
    done: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, text = tmp_path / "my.toml", done[0].read_text()
    for line in ("uniform_baseline = 3", "distillation = 0.5", "cache_teacher = true"):
        text = text.replace(line, "")
    path.write_text(f'method = "float"\n{text}')
    found = json_of(capsys, "cost", str(path), "--weight-bits", "3", "--activation-bits", "3")
    assert found["gbitops"] == pytest.approx(UNIFORM3)
    assert (found["budget"], found["reach"]) == (None, None)


def test_the_folder_of_a_json_file_is_made(tmp_path: Path) -> None:
    """A verb that worked for hours does not end in an error for that."""
    target = tmp_path / "new" / "x.json"
    assert main(["cost", "vit_tiny_patch16_224", "--num-classes", "10", "--json", str(target)]) == 0
    assert json.loads(target.read_text())["gbitops"] > 0


def test_cost_counts_the_classes_that_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    name = ("cost", "deit_tiny_patch16_224")
    fewer = json_of(capsys, *name, "--num-classes", "10")["gbitops"]
    assert json_of(capsys, *name)["gbitops"] - fewer == pytest.approx(990 * 192 * 64 / 1e9)


@pytest.mark.parametrize(
    ("method", "arguments", "text"),
    [
        ("ivit", [], r"what method 'ivit' costs is read off its program: run .*my.toml, then qvit cost RUN"),
        ("qvit", ["--weight-bits", "9"], r"--weight-bits is 9; bit-widths go from 2 to 8"),
        (
            "qvit-irm",
            ["--weight-bits", "3"],
            r"my.toml has fixed bits, and --weight-bits set those that are learned; leave it",
        ),
    ],
)
def test_a_recipe_that_cost_cannot_price(
    method: str,
    arguments: list[str],
    text: str,
    done: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "my.toml"
    rest = re.sub(r"uniform_baseline = 3|\[budget\]\ngbitops = \S+", "", done[0].read_text())
    path.write_text(f'method = "{method}"\n{rest}')
    assert main(["cost", str(path), *arguments]) == 2
    assert re.search(text, capsys.readouterr().err)


def test_eval_gives_one_table_for_everything(done: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    recipe, run = done
    result = read_result(run)
    table = json_of(capsys, "eval", str(run))
    assert (table["top1"], table["images"], table["labelled"]) == (result["top1"], 80, 80)
    data = ["--data", str(recipe.parent / "digits")]
    artifact = json_of(capsys, "eval", str(run / "model.qvit"), *data, "--reference", str(run))
    assert artifact["top1"] == result["top1_frozen"]
    assert artifact["agreement"] == result["agreement_frozen"]
    changed, weights = recipe.with_name("float.toml"), recipe.with_name("float.safetensors")
    changed.write_text(recipe.read_text().replace("[model]", f'[model]\ncheckpoint = "{weights}"'))
    save_file(load(run / "float").state_dict(), weights)
    float_table = json_of(capsys, "eval", str(changed))
    assert float_table["top1"] == result["top1_float"] == json_of(capsys, "eval", str(run / "float"))["top1"]
    assert table.keys() == artifact.keys() == float_table.keys()
    few = json_of(capsys, "eval", str(run), "--max-images", "16", "--split", "train", *data)
    assert few["images"] == 16


def test_eval_of_images_without_labels(done: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """A flat folder: agreement with the reference and no top-1; '' is the folder itself where it has class folders."""
    recipe, run = done
    folder = recipe.parent / "digits" / "validation"
    arguments = ["eval", str(run / "model.qvit"), "--reference", str(run)]
    flat = json_of(capsys, *arguments, "--data", str(folder / "3"))
    assert (flat["images"], flat["labelled"], flat["top1"]) == (8, 0, None)
    assert flat["agreement"] > 80
    classes = json_of(capsys, *arguments, "--data", str(folder), "--split", "")
    assert (classes["labelled"], classes["top1"]) == (80, read_result(run)["top1_frozen"])


def test_eval_of_an_artifact_goes_by_the_names_of_its_outputs(
    done: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A class map in training, or fewer classes here: sorted names would be other outputs, and nothing would say so."""
    digits = done[0].parent / "digits"
    program = qvit_runtime.load(done[1] / "model.qvit")
    names = program.preprocess.labels[::-1]
    turned, class_map = tmp_path / "turned.qvit", tmp_path / "names.txt"
    qvit_runtime.save(replace(program, preprocess=replace(program.preprocess, labels=names)), turned)
    class_map.write_text("\n".join(names))
    whole = ["eval", str(turned), "--data", str(digits)]
    by_name, by_map = json_of(capsys, *whole), json_of(capsys, *whole, "--class-map", str(class_map))
    assert by_name["top1"] == by_map["top1"]
    assert json_of(capsys, *whole, "--class-map", "")["top1"] == read_result(done[1])["top1_frozen"] != by_map["top1"]
    for digit in "56":
        shutil.copytree(digits / "validation" / digit, tmp_path / "some" / digit)
    few = [*whole[:2], "--data", str(tmp_path / "some"), "--split", ""]
    assert json_of(capsys, *few)["top1"] == json_of(capsys, *few, "--class-map", str(class_map))["top1"]
    named = (*program.preprocess.labels[:5], "five", "six", *program.preprocess.labels[7:])
    qvit_runtime.save(replace(program, preprocess=replace(program.preprocess, labels=named)), turned)
    straight = json_of(capsys, *few)  # "5" and "6" are no names here: they are numbers of outputs
    assert straight["top1"] == json_of(capsys, few[0], str(done[1] / "model.qvit"), *few[2:])["top1"]
    qvit_runtime.save(replace(program, preprocess=replace(program.preprocess, labels=names)), turned)
    (tmp_path / "some" / "6").rename(tmp_path / "some" / "six")
    assert main(few) == 2
    text = r"qvit: the outputs of the model are called 9, 8, 7, ..., and none is called six; give class_map \(--class-map\), "
    assert re.match(text, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["run", "none.toml"], r"qvit: there is no recipe none.toml"),
        (["cost", "vit_tinny"], r"qvit: timm has no model 'vit_tinny'; similar: "),
        (["cost", "resnet18"], r"qvit: .*ResNet"),
        (
            ["cost", "deit_tiny_patch16_224", "--weight-bits", "9"],
            r"qvit: FixedBits.bits is 9; bit-widths go from 2 to 8",
        ),
        (
            ["eval", "deit_tiny_patch16_224"],
            r"qvit: deit_tiny_patch16_224 does not say on which images to evaluate; give --",
        ),
        (["eval", "none.qvit", "--data", "digits"], r"qvit: .*none.qvit"),
        (
            ["cost", "deit_tiny_patch16_224", "--set", "seed=1"],
            r"qvit: --set changes a recipe, and deit_tiny_patch16_224 is none; leave it out or give a recipe \(.toml\)",
        ),
        (
            ["cost", "deit_tiny_patch16_224", "--json", "."],
            r"qvit: .*Is a directory: '.'",
        ),
        (["eval", "."], r"qvit: . has no recipe.json, so it is no run directory"),
        (
            ["eval", "my.qvit", "--data", "digits", "--checkpoint", "my.pth", "--reference", "other.qvit"],
            r"qvit: --checkpoint belongs to a timm model name; my.qvit, other.qvit have weights of their own, leave it out",
        ),
        (
            ["analyze", "my.toml", "--checkpoint", "my.pth", "--num-classes", "10"],
            r"qvit: --checkpoint and --num-classes belong to a timm model name; my.toml has weights of its own, leave them out",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_user_errors_are_one_line_and_exit_code_2(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" or "--json" in arguments  # there the work was done
    assert err.count("\n") == 1
    assert re.match(text, err), err


def test_run_of_a_float_recipe(done: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """The same verb trains a float model; what to do next is not to inspect an artifact."""
    recipe, out = done[0].with_name("only_float.toml"), done[0].with_name("only_float")
    recipe.write_text('method = "float"\n' + done[0].read_text())
    changes = ("fit.epochs=0.2", "fit.distillation=0.0", "fit.cache_teacher=false")
    assert main(["run", str(recipe), *(f"--set={change}" for change in changes), "--out", str(out)]) == 0
    assert f"wrote {out / 'result.json'}\nnext: qvit eval {out}\n" in capsys.readouterr().out
    assert main(["eval", str(out)]) == 0
    assert "top1 " in capsys.readouterr().out


def test_dry_run_verb(
    done: tuple[Path, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it says to type next is the recipe with the same overrides."""
    options = ["--set", "data.root=digits of mine", "--num-classes", "10", "--out", str(tmp_path / "x")]
    (tmp_path / "digits of mine").symlink_to(done[0].parent / "digits")
    monkeypatch.chdir(tmp_path)
    assert main(["run", str(done[0]), "--dry-run", *options, "--json", "-"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["checked"][1] == "images: 160 to train or calibrate on, 80 to evaluate"
    assert found["checked"][-1].startswith("freeze: ")
    assert found["not_looked_at"] == []
    command = err.splitlines()[-1].removeprefix(f"{done[0]} is ready: ")
    pasted = shlex.split(command)
    assert pasted[:3] == ["qvit", "run", str(done[0])]
    assert sorted(pasted[3:]) == sorted(options)
    assert not (tmp_path / "x").exists()


def test_dry_run_says_what_it_did_without(done: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """It is no error that images or weights are not here yet, and no readiness either."""
    missing = ["--set", "data.root=/nowhere", "--set", "model.checkpoint=/none.pth"]
    assert main(["run", str(done[0]), "--dry-run", *missing, "--json", "-"]) == 0
    out, err = capsys.readouterr()
    unseen = ["images of /nowhere (not found)", "checkpoint /none.pth (not found)"]
    assert json.loads(out)["not_looked_at"] == unseen
    assert err.endswith(f"{done[0]} works on generated images; not looked at: {', '.join(unseen)}\n")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"qvit {qvit.__version__}\n"
    assert qvit.__version__ == version("qvit")
