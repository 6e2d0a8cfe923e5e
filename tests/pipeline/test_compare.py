"""qvit compare: recipes are run once, rows are judged in pairs on the same images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from qvit.cli import main
from qvit.cli.compare import COLUMNS
from qvit.cli.output import table
from qvit.evaluation.outcome import load_predictions
from qvit.pipeline.compare import compare
from qvit.pipeline.finished import read_result
from qvit.system.runs import load_tensors, save_tensors


@pytest.fixture
def recipes(done: tuple[Path, Path], tmp_path: Path) -> list[Path]:
    """Two methods on the float row of the toy run."""
    path, run = done
    text = path.read_text().split("[budget]")[0].replace("uniform_baseline = 3\n", "")
    text = text.replace('root = "digits"', f'root = "{path.parent / "digits"}"')
    before, _, after = text.partition("[train_float]")
    text = (
        before.replace("[model]", f'[model]\ncheckpoint = "{run / "float"}"') + "[data]" + after.partition("[data]")[2]
    )
    files = []
    for method, options in (("ptq", ""), ("lsq", FIXED)):
        files.append(tmp_path / f"{method}.toml")
        files[-1].write_text(f'method = "{method}"\n{text}\n[fit]\nepochs = 0\n{options}')
    return files


FIXED = """[quantize]
weights = { kind = "FixedBits", bits = 3 }
activations = { kind = "FixedBits", bits = 3 }
"""


def test_runs_what_is_not_finished_and_puts_it_into_one_table(
    recipes: list[Path], done: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["compare", *map(str, recipes), str(done[1]), "--out", str(out)]
    assert main([*arguments, "--json", str(tmp_path / "x.json")]) == 0
    text = capsys.readouterr().out
    found = json.loads((out / "compare.json").read_text())
    assert found == json.loads((tmp_path / "x.json").read_text())
    floating, *rows = found["rows"]
    assert [row["method"] for row in rows] == ["PTQ MinMax W8A8", "uniform W3A3", "head-wise learned bits"]
    assert floating["top1"] == rows[0]["top1_float"]
    for row in rows:
        result = read_result(row["run"])
        assert row["difference"] == pytest.approx(result["top1"] - result["top1_float"])
        assert row["gbitops"] == result["gbitops"]
        assert row["milliseconds"] > 0
        assert f"{row['difference']:+.2f} +- {row['half_width']:.2f}" in text
    assert f"{recipes[0]}: running in {out / 'ptq'}" in text
    before = (out / "ptq" / "result.json").read_bytes()
    assert main(arguments) == 0
    assert f"{recipes[0]}: finished in {out / 'ptq'}" in capsys.readouterr().out
    assert (out / "ptq" / "result.json").read_bytes() == before


def test_the_interval_is_that_of_pairs(done: tuple[Path, Path]) -> None:
    """By hand from the predictions that the run kept."""
    row = compare([done[1]], repeats=1)["rows"][1]
    kept = load_predictions(done[1])
    d = 100.0 * ((kept["module"] == kept["labels"]) * 1.0 - (kept["float"] == kept["labels"]))
    assert row["difference"] == pytest.approx(d.mean())
    assert row["half_width"] == pytest.approx(1.96 * d.std(ddof=1) / len(d) ** 0.5)


def test_rows_of_other_images_are_refused(done: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(done[1] / "uniform3", tmp_path / "other")
    tensors, _ = load_tensors(tmp_path / "other" / "predictions.safetensors")
    save_tensors(tmp_path / "other" / "predictions.safetensors", {name: t.flip(0) for name, t in tensors.items()}, {})
    with pytest.raises(ValueError, match=r"other was judged on other images than .*run: give all rows the same data"):
        compare([done[1], tmp_path / "other"], repeats=1)
    with pytest.raises(ValueError, match=r"float is a float run; it is part of every row already"):
        compare([done[1] / "float"])


def test_rows_of_another_float_model_stand_below_it(done: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(done[1] / "uniform3", tmp_path / "other")
    tensors, _ = load_tensors(tmp_path / "other" / "predictions.safetensors")
    tensors["float"] = (tensors["float"] + 1) % 10
    save_tensors(tmp_path / "other" / "predictions.safetensors", tensors, {})
    result = {**read_result(tmp_path / "other"), "top1_float": 7.0}
    (tmp_path / "other" / "result.json").write_text(json.dumps(result))
    rows = compare([done[1] / "uniform3", done[1], tmp_path / "other"], repeats=1)["rows"]
    assert [row["method"] == "float" for row in rows] == [True, False, False, True, False]
    assert rows[3]["top1"] == 7.0


def test_what_cannot_be_a_row_is_refused_before_anything_runs(
    recipes: list[Path], done: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    floating, broken, old = tmp_path / "float.toml", tmp_path / "broken.toml", tmp_path / "old"
    floating.write_text(recipes[0].read_text().replace('method = "ptq"', 'method = "float"').replace("epochs = 0", ""))
    broken.write_text("method = 1")
    shutil.copytree(done[1] / "uniform3", old)
    result = {key: value for key, value in read_result(old).items() if key not in ("seed", "artifact_kib")}
    (old / "result.json").write_text(json.dumps(result))
    for last, text in (
        (floating, f"{floating} trains a float model; that of each row is part of it already, leave the recipe out"),
        (broken, "method is 1; allowed: "),
        (tmp_path / "none", f"there is no recipe {tmp_path / 'none'}"),
        (old, f"{old / 'result.json'} is of another version of qvit, it lacks seed, artifact_kib; run it anew"),
    ):
        assert main(["compare", str(recipes[0]), str(last), "--out", str(tmp_path / "out")]) == 2
        assert text in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_options_of_recipes_need_one(done: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(done[1]), "--set", "nonsense.key=1", "--checkpoint", "nowhere.pth"]) == 2
    text = "--set, --checkpoint would change a recipe, and only finished runs are compared; leave it out"
    assert text in capsys.readouterr().err


def test_two_rows_of_one_name_are_refused(recipes: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(recipes[0]), str(recipes[0])]) == 2
    assert "two rows would share a run directory: runs/compare/ptq; rename a recipe" in capsys.readouterr().err


def test_the_table_says_what_collapsed() -> None:
    row = {"method": "x", "top1": 11.0, "minus_float": "-60.00 +- 1.00", "collapse": "collapsed: top-1 11.00 %"}
    header, _, line = table([row], COLUMNS).split("\n")
    assert line.startswith("x  ")
    assert line.endswith("-  collapsed: top-1 11.00 %")
    assert line.index("11.00") + 5 == header.index("top-1 %") + 7
