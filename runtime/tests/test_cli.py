"""`qvit-runtime`: answers, errors, exit codes and JSON of predict and inspect."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import pytest
from PIL import Image

from qvit_runtime import __version__, cli, run, save
from qvit_runtime.cli import bits_text, main, weight_bits_text
from qvit_runtime.predict import predict, rank
from qvit_runtime.preprocess import ImageError, preprocess
from toy_edits import edit_preprocess
from toy_programs import vit_program

LABELS = ("tench", "Käfer", "猫", "dog", "owl")
PROGRAM = edit_preprocess(vit_program(seed=2), labels=LABELS)


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "toy.qvit"
    save(PROGRAM, path)
    return str(path)


@pytest.fixture
def photos(tmp_path):
    """A folder with a.png, b.JPG, below/c.webp, a broken d.png, and a text file that is nobody's business."""
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.JPG", "below/c.webp"):
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(folder / name)
    (folder / "d.png").write_bytes(b"not a picture")
    (folder / "notes.txt").write_text("hello")
    return folder


def test_predict_names_the_most_probable_class(model, photos, capsys):
    file = str(photos / "a.png")
    assert main(["predict", model, file]) == 0
    name, best, *others = capsys.readouterr().out.splitlines()
    image = Image.open(file)
    logits = run(PROGRAM, preprocess(image, PROGRAM.preprocess)[None])[0]
    assert name == file
    assert best.split()[1:] == [str(logits.argmax()), LABELS[logits.argmax()]]
    assert len(others) == 4


def test_a_bad_image_is_reported_and_the_others_are_answered(model, photos, tmp_path, capsys):
    out = tmp_path / "result.json"
    assert main(["predict", model, str(photos), str(photos / "none.png"), "--top", "2", "--json", str(out)]) == 1
    captured, result = capsys.readouterr(), json.loads(out.read_text())
    assert [image["file"].removeprefix(str(photos)) for image in result["images"]] == [
        "/a.png",
        "/b.JPG",
        "/below/c.webp",
        "/d.png",
        "/none.png",
    ]
    assert [len(image.get("top", ())) for image in result["images"]] == [2, 2, 2, 0, 0]
    assert "d.png: not an image, allowed: JPEG, PNG, WEBP" in captured.err
    assert "none.png: cannot be read: No such file" in captured.err
    assert captured.out.count("%") == 6


def test_probabilities_sum_to_one(model, photos, capsys):
    assert main(["predict", model, str(photos / "a.png"), "--json", "-"]) == 0
    (image,) = json.loads(capsys.readouterr().out)["images"]
    probabilities = [guess["probability"] for guess in image["top"]]
    assert sum(probabilities) == pytest.approx(1)
    assert probabilities == sorted(probabilities, reverse=True)
    assert {guess["label"] for guess in image["top"]} == set(LABELS)


def test_standard_input(model, photos, capsys, monkeypatch):
    content = io.BytesIO((photos / "a.png").read_bytes())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(content))
    assert main(["predict", model, "-"]) == 0
    from_pipe = capsys.readouterr().out.splitlines()[1:]
    main(["predict", model, str(photos / "a.png")])
    assert capsys.readouterr().out.splitlines()[1:] == from_pipe


def test_a_folder_without_images_is_an_error(model, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["predict", model, str(tmp_path / "empty")]) == 1
    assert "empty: a folder without JPEG, PNG or WebP files" in capsys.readouterr().err


def test_a_model_without_labels_answers_with_indices(tmp_path, photos, capsys):
    save(replace(PROGRAM, preprocess=replace(PROGRAM.preprocess, labels=())), tmp_path / "bare.qvit")
    assert main(["predict", str(tmp_path / "bare.qvit"), str(photos / "a.png"), "--top", "1"]) == 0
    probability, index = capsys.readouterr().out.splitlines()[1].split()
    assert probability.endswith("%")
    assert 0 <= int(index) < 5


@pytest.mark.parametrize("verb", ["predict", "inspect"])
@pytest.mark.parametrize(
    ("content", "message"), [(None, "No such file"), (b"junk", "model.qvit: the file has 4 bytes")]
)
def test_a_bad_model_is_named(tmp_path, verb, content, message, capsys):
    path = tmp_path / "model.qvit"
    if content is not None:
        path.write_bytes(content)
    assert main([verb, str(path), *(["x.png"] if verb == "predict" else [])]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_an_engine_that_cannot_start_is_one_line(model, photos, monkeypatch, capsys):
    monkeypatch.setenv("QVIT_CPU", "abacus")
    assert main(["predict", model, str(photos / "a.png")]) == 2
    assert "kernel path 'abacus' is unknown; QVIT_CPU takes one of: " in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "qvit_runtime._native", None)
    assert main(["bench", model]) == 2
    error = capsys.readouterr().err
    assert error.startswith("qvit-runtime: the native engine of qvit_runtime is not built")
    assert error.count("\n") == 1


def test_json_that_cannot_be_written_is_an_error(model, tmp_path, capsys):
    assert main(["inspect", model, "--json", str(tmp_path / "no" / "where.json")]) == 2
    assert "No such file" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["predict"], ["predict", "m.qvit"], ["predict", "m", "i", "--top", "0"]])
def test_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: qvit-runtime" in capsys.readouterr().err


@pytest.mark.parametrize(("processors", "threads"), [(None, 1), (3, 3), (64, 4)])
def test_threads_where_a_system_knows_no_affinity(processors, threads, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: processors)
    assert cli.default_threads() == threads
    assert cli.parser().parse_args(["predict", "model", "image"]).threads == threads


def test_inspect_shows_bits_per_head_and_placement(model, capsys):
    assert main(["inspect", model]) == 0
    lines = capsys.readouterr().out.splitlines()
    qkv = PROGRAM.weights["blocks.0.attn.qkv.weight"].bits
    line = next(line for line in lines if line.startswith("blocks.0.attn.qkv.weight"))
    assert f"48 x 16  {' '.join(map(str, qkv.ravel()))}" in line
    soft = PROGRAM.buffers["blocks.1.attn.map"].grid
    line = next(line for line in lines if line.startswith("blocks.1.attn.map"))
    assert " ".join(map(str, soft.bits)) in line
    assert line.endswith("unsigned")
    assert any(line.split() == ["Softmax", "2", "float"] for line in lines)
    assert any(line.split() == ["Linear", "10", "integer"] for line in lines)


def test_inspect_json(model, capsys):
    assert main(["inspect", model, "--json", "-"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["file"] == model
    assert about["bytes"] > about["totals"]["packed_weight_bytes"] > 0
    assert about["preprocess"]["labels"] == list(LABELS)


def test_bits_in_words():
    assert bits_text([4]) == "4"
    assert bits_text([4, 4, 4]) == "4 (all 3)"
    assert bits_text([4, 3, 4]) == "4 3 4"
    assert bits_text([2, 8] * 50) == "2..8, mean 5.00 of 100"
    assert weight_bits_text([[2], [3]], [[False], [False]]) == "2 3"
    assert weight_bits_text([[2, 3]], [[False, False]]) == "2 3"
    assert weight_bits_text([[2, 3], [4, 4]], [[False] * 2] * 2) == "2 3 | 4 (all 2)"
    assert weight_bits_text([[2]], [[True]]) == "2, mid-rise"
    assert weight_bits_text([[2], [2], [3]], [[True], [True], [False]]) == "2 2 3, 2 of 3 mid-rise"


def test_a_program_that_no_image_file_fits_is_refused_before_the_first(photos):
    wide = replace(PROGRAM.preprocess, mean=(0.5,) * 4, std=(0.5,) * 4)
    answers = predict(replace(PROGRAM, preprocess=wide), lambda images: pytest.fail("it ran"), [str(photos)])
    with pytest.raises(ImageError, match="the program takes images of 4 channels and an image file gives 1 or 3; norm"):
        next(answers)


def test_output_that_is_not_finite_is_an_error_of_that_image(photos):
    answers = list(predict(PROGRAM, lambda images: np.full((1, 5), np.nan), [str(photos / "a.png")]))
    assert answers[0].error == f"{photos / 'a.png'}: the output of the network is not finite"


def test_equal_logits_come_in_order_of_their_index():
    assert [guess.index for guess in rank(np.array([1.0, 2.0, 2.0, 1.0]), (), 3)] == [1, 2, 0]


def test_a_name_that_the_terminal_cannot_show_is_printed_escaped(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), "ascii")
    cli.say("Käfer \udcff", stream)
    stream.flush()
    assert stream.buffer.getvalue() == b"K\\xe4fer \\udcff\n"


def test_the_module_runs_and_never_imports_torch(model, photos):
    code = "import sys, qvit_runtime.cli as c; e = c.main(sys.argv[1:]); print('torch' in sys.modules); sys.exit(e)"
    done = subprocess.run([sys.executable, "-c", code, "predict", model, str(photos / "a.png")], capture_output=True)
    assert done.returncode == 0
    assert done.stdout.decode().splitlines()[-1] == "False"
    assert done.stderr == b""


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"qvit-runtime {__version__}\n"
    assert __version__ == version("qvit-runtime")
