"""The report: which runs are meant, what is read of them, and a page that is whole, safe and self-contained."""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from qvit.cli.report import add_parser, report_verb
from qvit.methods import PostTraining
from qvit.settings.recipe import Recipe
from qvit.training.fit_config import FitConfig

pytest.importorskip("altair")
pytest.importorskip("vl_convert")
from qvit.report import ReportError, make_report, refresh
from qvit.report.find import find_runs
from qvit.report.page import breakable
from qvit.report.read import read_run
from qvit.report.rows import missing, provenance
from qvit.system.runs import CheckpointError
from qvit_runtime import ArtifactError
from toy_report import ALL, write_analysis, write_run

HOSTILE = "<script>alert(1)<img src=x onerror=alert(2)>"


class Elements(HTMLParser):
    """Tags with their attributes, visible text, and the content of scripts."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts.append(data)
        elif self.cdata_elem is None:
            self.text += data

    def ids(self) -> set[str]:
        return {attributes["id"] or "" for _, attributes in self.tags if "id" in attributes}

    def figures(self) -> set[str]:
        return {attributes["id"] or "" for tag, attributes in self.tags if tag == "figure"}

    def data(self) -> dict:
        """What the charts are drawn from."""
        return json.loads(next(script for script in self.scripts if script.startswith('{"parameter"')))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Elements:
    """Two whole runs, one of a hostile name, and an analysis."""
    runs = tmp_path_factory.mktemp("runs")
    write_run(runs / "learned")
    write_run(runs / HOSTILE.replace("/", "_"), seed=1, method=HOSTILE, model=HOSTILE)
    write_analysis(runs / "analysis")
    make_report([runs], runs.parent / "report.html")
    return Elements(runs.parent / "report.html")


# -- which runs ------------------------------------------------------------------------------------------------------------


def test_rows_inside_a_run_and_folders_of_runs_are_found(tmp_path: Path) -> None:
    write_run(tmp_path / "a" / "uniform3", ["result"])
    write_run(tmp_path / "a", ["result"])
    write_run(tmp_path / "b", ["metrics"])
    (tmp_path / "teacher_cache").mkdir()
    assert list(find_runs([tmp_path])) == [f"{tmp_path.name}/{name}" for name in ("a", "a/uniform3", "b")]
    assert list(find_runs([tmp_path / "b", tmp_path / "a", tmp_path / "b"])) == ["b", "a", "a/uniform3"]


def test_equal_names_are_told_apart(tmp_path: Path) -> None:
    for where in ("x", "y"):
        write_run(tmp_path / where / "run", ["result"])
    assert list(find_runs([tmp_path / "x" / "run", tmp_path / "y" / "run"])) == ["x/run", "y/run"]


def test_a_directory_and_a_file_of_one_name_are_told_apart(tmp_path: Path) -> None:
    run, file = write_run(tmp_path / "x", ["result"]), tmp_path / "x.json"
    file.write_text((run / "result.json").read_text())
    assert find_runs([run, file]) == {"x": run, "x.json": file}


def test_result_files_are_rows(tmp_path: Path) -> None:
    write_run(tmp_path / "run", ["result"])
    for name in ("float", "headwise"):
        (tmp_path / f"{name}.json").write_text((tmp_path / "run" / "result.json").read_text())
    (tmp_path / "run" / "result.json").unlink()
    (tmp_path / "other.json").write_text("[]")
    assert list(find_runs([tmp_path])) == [f"{tmp_path.name}/float", f"{tmp_path.name}/headwise"]
    assert read_run("row", find_runs([tmp_path / "headwise.json"])["headwise"]).outcome is not None


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        ReportError, match=r"nothing does not exist; give run directories, such as runs/NAME of qvit run$"
    ):
        find_runs([tmp_path / "nothing"])


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    marks = r"result\.json, recipe\.json, metrics\.jsonl, analysis\.json"
    with pytest.raises(
        ReportError, match=rf"{re.escape(str(tmp_path))} holds no run: a run directory has one of {marks}$"
    ):
        find_runs([tmp_path])


# -- what is read ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("result.json", "{"),
        ("result.json", "[1]"),
        ("result.json", '{"model": "m"}'),
        ("result.json", '{"model": "m", "method": "n", "top1": "high"}'),
        ("recipe.json", "\x00"),
        ("recipe.json", '{"kind": "Recipe", "colour": 1}'),
        ("provenance.json", "3"),
        ("metrics.jsonl", '{"loss": 1}\n{"step": 2}\n'),
        ("metrics.jsonl", '{"step": 1}\n{"st\n{"step": 2}\n'),
        ("bits.jsonl", '{"step": 1, "locked": false, "bits": [3]}\n'),
        ("bench.json", '{"path": "scalar"}'),
        ("analysis.json", '{"rows": [{"bits": 3}]}'),
        ("activations.json", '{"images": 1, "tensors": {"a": 1}}'),
        (
            "activations.json",
            '{"images": 1, "tensors": {"a": {"signed": true, "groups": [{"bits": 2, "codes": [NaN]}]}}}',
        ),
    ],
)
def test_a_damaged_file_is_named_in_one_line(name: str, content: str, tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    (tmp_path / "run" / name).write_text(content)
    with pytest.raises(ReportError, match=re.escape(str(tmp_path / "run" / name)) + " is damaged") as caught:
        read_run("run", tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_a_measurement_needs_no_more_than_what_is_shown(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ["result"])
    (run / "bench.json").write_text('{"path": "avx2", "threads": 2, "batch": 4, "median": 0.008}')
    bench = read_run("run", run).bench
    assert bench is not None
    assert (bench.milliseconds, bench.conditions, bench.steps) == (2.0, "avx2, 2 threads, batch 4", ())


def test_damaged_tensors_are_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        read_run("run", run)
    (run / "model.safetensors").unlink()
    (run / "model.qvit").write_bytes((run / "model.qvit").read_bytes()[:-9])
    with pytest.raises(ArtifactError, match=r"model\.qvit"):
        read_run("run", run)


def test_a_last_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ["metrics", "bits"])
    for name in ("metrics.jsonl", "bits.jsonl"):
        (run / name).write_text((run / name).read_text()[:-5])
    found = read_run("run", run)
    assert (len(found.metrics), len(found.history)) == (41, 20)


def test_numbers_that_are_not_finite_are_not_known(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ["result"], top1=float("nan"))
    found = read_run("run", run).outcome
    assert found is not None
    assert found.top1 is None


# -- the page --------------------------------------------------------------------------------------------------------------


def test_every_section_and_picture_is_there(page: Elements) -> None:
    assert {"runs", "tradeoff", "training", "bits", "sensitivity", "details"} <= page.ids()
    expected = {f"accuracy-{price}-{task}" for price in ("gbitops", "kib", "ms") for task in (0, 1)}
    expected |= {f"training-{name}" for name in ("top1", "loss", "gbitops", "weight_bits", "activation_bits")}
    expected |= {"training-gradient_norm", "training-learning_rate", "bits-by-role"}
    alone = ("bits-by-head", "bits-by-layer", "bit-paths", "slots-in-use", "scale-banks", "weights", "activation-grids")
    alone += ("activations",)
    expected |= {f"run{number}-{name}" for number in (0, 1) for name in (*alone, "engine")}
    expected |= {f"analysis0-{mode}-{kind}" for mode in ("alone", "all-but") for kind in ("component", "head")}
    assert page.figures() == expected | {"analysis0-sites"} == set(page.data()["pictures"])
    for said in ("qvit run toy.toml", "Provenance", "Where operations run", "What the artifact is made of", "a detail"):
        assert said in page.text


def test_text_of_files_is_text(page: Elements) -> None:
    assert [tag for tag, _ in page.tags].count("script") == 3
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert "img" not in [tag for tag, _ in page.tags]
    assert page.text.count(HOSTILE) >= 3  # name, method, model
    assert any(HOSTILE in str(row) for table in page.data()["tables"] for row in table["rows"])


def test_names_break_behind_underscores_and_slashes_only() -> None:
    assert breakable("demo/head_wise-3") == "demo/<wbr>head_<wbr>wise-3"
    assert breakable("<b>/&") == "&lt;b&gt;/<wbr>&amp;"


def test_nothing_is_loaded_from_anywhere(page: Elements) -> None:
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
    policy = next(a["content"] or "" for t, a in page.tags if t == "meta" and a.get("http-equiv"))
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "http" not in policy
    hashes = {
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in page.scripts[1:]
    }
    assert len(hashes) == 2
    assert hashes <= set(re.split("[ ;]", policy))


@pytest.mark.parametrize("absent", [[part] for part in ALL] + [[*ALL[1:]], [*ALL[:1], *ALL[2:]]], ids="-".join)
def test_a_run_that_lacks_a_part_shows_the_rest(absent: list[str], tmp_path: Path) -> None:
    write_run(tmp_path / "run", [part for part in ALL if part not in absent])
    make_report([tmp_path / "run"], tmp_path / "report.html")
    page = Elements(tmp_path / "report.html")
    needs = {
        "result": ["accuracy-gbitops"],
        "metrics": ["training-loss", "training-top1"],
        "bits": ["run0-bit-paths"],
        "bench": ["run0-engine"],
        "artifact": ["run0-weights", "run0-activation-grids"],
        "model": ["run0-scale-banks", "run0-slots-in-use"],
    }
    for part, pictures in needs.items():
        for picture in pictures:
            assert (picture in page.figures()) == (part not in absent)
    assert ("run0-activations" in page.figures()) == (not {"artifact", "activations"} & set(absent))
    assert ("No activations.json: " in page.text) == (absent == ["activations"])
    if absent == ["bench"]:
        assert f"--profile --json {tmp_path / 'run' / 'bench.json'}" in page.text


@pytest.mark.slow
def test_forty_runs_of_two_thousand_steps_are_small(tmp_path: Path) -> None:
    log = write_run(tmp_path / "runs" / "run0", steps=2000, depth=4)
    for number in range(1, 40):
        folder = tmp_path / "runs" / f"run{number}"
        folder.mkdir()
        for file in log.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
    make_report([tmp_path / "runs"], tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 15e6


def test_a_page_reloads_itself_until_the_run_is_finished(tmp_path: Path) -> None:
    run, out = write_run(tmp_path / "run", ["recipe"]), tmp_path / "live.html"
    refresh(run, out)
    assert "reload" in Elements(out).ids()
    write_run(run, ["metrics", "bits"])
    refresh(run, out)
    live = Elements(out)
    assert live.data()["reload"] > 0
    assert "not finished, step 40" in live.text
    assert "training-gbitops" in live.figures()
    write_run(run, ["result"])
    refresh(run, out)
    assert "reload" not in Elements(out).ids()
    assert Elements(out).data()["reload"] == 0


LEARNED, GIVEN = Recipe(), Recipe(method="ptq", quantize=PostTraining(6, 6), fit=FitConfig(epochs=0))


@pytest.mark.parametrize(
    ("recipe", "absent", "said"),
    [
        (LEARNED, (), []),
        (LEARNED, ("bits",), ["No bits.jsonl: the path of the bits is not known."]),
        (LEARNED, ("model",), ["No model.safetensors: the float weights, and the scale slots, are not known."]),
        (GIVEN, ("bits",), []),
        (GIVEN, ("bits", "model"), ["No model.safetensors: the float weights are not known."]),
        (LEARNED, ("recipe", "bits"), []),  # whether bits were learned is not known
    ],
)
def test_what_is_missing_is_what_the_method_has(
    recipe: Recipe, absent: tuple[str, ...], said: list[str], tmp_path: Path
) -> None:
    folder = write_run(tmp_path / "run", [part for part in ALL if part not in absent], recipe=recipe)
    assert missing(read_run("run", folder)) == said


def test_provenance_shows_every_state_of_the_source(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", ["result", "provenance"])
    assert "source" not in dict(provenance(read_run("run", folder)))
    record = json.loads((folder / "provenance.json").read_text())
    resumed = [{"started": "later", "source": name} for name in ("abc", None, "def+changes")]
    (folder / "provenance.json").write_text(json.dumps({**record, "source": "abc", "resumed": resumed}))
    assert dict(provenance(read_run("run", folder)))["source"] == "abc, then def+changes"


# -- the verb --------------------------------------------------------------------------------------------------------------


def test_the_verb_writes_a_page_and_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", ["result", "bench"])
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers()).add_argument("--json")
    out, pictures = tmp_path / "report.html", tmp_path / "pictures"
    arguments = parser.parse_args(["report", str(run), "-o", str(out), "--png", str(pictures)])
    written = [Path(path) for path in report_verb(arguments)["written"]]
    assert written[0] == out
    assert {path.stem for path in written[1:]} == Elements(out).figures() == {path.stem for path in pictures.iterdir()}
    for path in written[1:]:
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG\r\n\x1a\n")
        assert int.from_bytes(content[16:20], "big") >= 300  # pixels wide
    assert "wrote 7 pictures" in capsys.readouterr().out


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("qvit.report")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "altair", None)
    with pytest.raises(ImportError, match=r"a report needs altair: pip install 'qvit\[report\]'"):
        report_verb(argparse.Namespace())
