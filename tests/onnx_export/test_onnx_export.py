"""export_onnx and `qvit export`: what is in the file, what is refused, and that a wrong graph is never written."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

import qvit
import toy_integer_programs as integer_toys
import toy_programs as toys
from qvit.cli import main
from qvit.onnx_export import OnnxExportError, agreement, export_onnx, onnxruntime_session
from qvit.onnx_export.sessions import reference_session
from qvit.onnx_export.translate import TRANSLATE
from qvit.onnx_export.translation import Tensors, Translation
from qvit_runtime import ProgramError, run, save
from qvit_runtime import program as p
from toy_onnx import kinds, random_images, stored_types

TOYS: dict[str, Callable[[], p.Program]] = {
    "vit": toys.vit_program,
    "distilled": lambda: toys.vit_program(distilled=True, layer_scale=True, qk_norm=True, registers=2),
    "features": lambda: toys.vit_program(mean_pool=True, classes=0, registers=4, bits=8, per_channel=True),
    "swin": toys.swin_program,
    "mid-rise": lambda: toys.vit_program(midrise=0.5),
    "two-scaled": integer_toys.regions_program,
}


@pytest.mark.parametrize("toy", TOYS)
def test_the_file_answers_as_the_interpreter_for_any_batch(toy: str, tmp_path: Path) -> None:
    program = TOYS[toy]()
    verification = export_onnx(program, tmp_path / "m.onnx")
    assert verification.codes > 10_000
    assert verification.value_error < 1e-6
    session = reference_session((tmp_path / "m.onnx").read_bytes())
    for batch in (1, 3):
        x = random_images(program, batch)
        assert np.allclose(session(x)["output"], run(program, x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("optimized", [True, False])
@pytest.mark.parametrize("toy", TOYS)
def test_onnx_runtime_leaves_the_interpreter_at_ties_only(toy: str, optimized: bool) -> None:
    program = TOYS[toy]()
    found = agreement(program, random_images(program, 8), lambda model: onnxruntime_session(model, optimized=optimized))
    assert found.images == 8
    assert found.images_equal >= 0.5
    assert found.first_apart <= 1
    assert found.first_tie < 1e-4
    assert found.clear_equal == 1.0


@pytest.mark.parametrize("toy", TOYS)
def test_onnx_runtime_multiplies_integers(toy: str, tmp_path: Path) -> None:
    """Every product but that of the classifier, whose two axes make it a float Gemm, becomes an integer one.

    MatMulNBits, which it makes of weights behind other codes, would quantize the activations a second time.
    """
    import onnxruntime

    export_onnx(TOYS[toy](), tmp_path / "m.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3  # that file is for this machine only, which it warns of
    onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), options, providers=["CPUExecutionProvider"])
    found = kinds(onnx.load(tmp_path / "optimized.onnx"))
    products = kinds(onnx.load(tmp_path / "m.onnx")).count("MatMul")
    assert not {"MatMul", "MatMulNBits"} & set(found)
    assert found.count("MatMulIntegerToFloat") + found.count("Gemm") == products
    assert found.count("Gemm") <= 2  # distilled networks have two classifiers


def test_agreement_sees_a_runtime_that_is_wrong() -> None:
    program = toys.vit_program()
    x = random_images(program, 4)
    found = agreement(program, x, lambda model: lambda images: reference_session(model)(images * np.float32(1.02)))
    assert found.images_equal == 0.0
    assert found.codes_equal < 1.0
    assert found.first_tie > 1e-2


def test_what_the_file_says_about_itself(tmp_path: Path) -> None:
    program = toys.vit_program(size=16)
    how = p.Preprocess((16, 16), 0.9, mean=(0.5, 0.4, 0.3), labels=("a", "b", "c", "d", "é"))
    program = dataclasses.replace(program, preprocess=how, metadata={"made by": "a test"})
    export_onnx(program, tmp_path / "m.onnx")
    model = onnx.load(tmp_path / "m.onnx")
    facts = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    lists = {name: tuple(value) if isinstance(value, list) else value for name, value in facts["preprocess"].items()}
    assert p.Preprocess(**lists, labels=tuple(facts["labels"])) == how
    assert facts["qvit"] == {"made by": "a test"}
    assert model.graph.name == "toy_vit"
    ends = [*model.graph.input, *model.graph.output]
    sizes = [[d.dim_param or d.dim_value for d in end.type.tensor_type.shape.dim] for end in ends]
    assert [end.name for end in ends] == ["images", "output"]
    assert sizes == [["batch", 3, 16, 16], ["batch", 5]]
    assert [(i.domain, i.version) for i in model.opset_import] == [("", 21)]


def test_int2_on_request_in_onnx_runtime(tmp_path: Path) -> None:
    program = toys.vit_program(bits=2)
    export_onnx(program, tmp_path / "plain.onnx")
    export_onnx(program, tmp_path / "int2.onnx", int2=True)
    plain, narrow = onnx.load(tmp_path / "plain.onnx"), onnx.load(tmp_path / "int2.onnx")
    assert stored_types(plain) == {"INT4", "INT8"}  # the 8-bit ends
    assert stored_types(narrow) == {"INT2", "INT4", "INT8"}
    assert narrow.opset_import[0].version == 25
    x = random_images(program, 3)
    found = onnxruntime_session(narrow.SerializeToString())(x)["output"]
    assert np.allclose(found, run(program, x), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("program", "match"),
    [
        (
            integer_toys.integer_vit_program,
            r"op 2 LinearAccumulate .*cannot be exported: this op of I-ViT .*qvit_runtime.Engine",
        ),
        (
            integer_toys.log2_program,
            r"IntegerLayerNorm .*op of I-ViT and FQ-ViT computes in 64-bit.*\(qvit, lsq, ptq, tsptq",
        ),
    ],
)
def test_integer_only_programs_are_refused_by_name(
    program: Callable[[], p.Program], match: str, tmp_path: Path
) -> None:
    with pytest.raises(OnnxExportError, match=match):
        export_onnx(program(), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_is_not_well_formed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match="the name of a buffer"):
        export_onnx(dataclasses.replace(toys.vit_program(), output="nowhere"), tmp_path / "m.onnx")


TRANSLATE_QUANTIZE = TRANSLATE[p.Quantize]


def flat_codes(t: Translation, op: p.Quantize) -> Tensors:
    right = TRANSLATE_QUANTIZE(t, op)
    return dataclasses.replace(right, names=tuple(t.graph.reshape(name, -1) for name in right.names))


@pytest.mark.parametrize(
    ("kind", "wrong", "match"),
    [
        (
            p.Gelu,
            lambda t, op: Tensors((t.graph.add("Gelu", t.value(op.input), approximate="tanh"),)),
            r"Gelu 'blocks.0.mlp.gelu' as ONNX: values differ from the interpreter's by .* nothing was written",
        ),
        (
            p.Quantize,
            lambda t, op: Tensors(tuple(t.graph.add("Neg", x) for x in TRANSLATE_QUANTIZE(t, op).names), (1.0,)),
            r"Quantize 'image_codes' as ONNX: \d+ of \d+ codes differ",
        ),
        (
            p.Quantize,
            flat_codes,
            r"Quantize 'image_codes' as ONNX: its shape is \(\d+, \d+\) and not \(\d+, 3, \d+, \d+\)",
        ),
        (
            p.SelectToken,
            lambda t, op: t.move(op.input, lambda x: t.graph.reshape(x, *t.shape(op.input))),
            r"SelectToken 'class_token' as ONNX: its shape is \(2, 17, 16\) and not \(2, 16\)",
        ),
    ],
)
def test_a_wrong_translation_is_found_and_nothing_is_written(
    kind: type, wrong: Callable, match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TRANSLATE, kind, wrong)
    monkeypatch.setattr("onnx.checker.check_model", lambda *_, **__: None)
    with pytest.raises(OnnxExportError, match=match):
        export_onnx(toys.vit_program(), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(toys.vit_program(), tmp_path / "model.qvit")
    assert main(["export", str(tmp_path), "--json", str(tmp_path / "result.json")]) == 0
    written = tmp_path / "model.onnx"
    said = capsys.readouterr().out
    assert f"wrote {written}" in said
    assert "codes equal" in said
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["written"], result["bytes"]) == (str(written), written.stat().st_size)
    assert main(["export", str(tmp_path / "model.qvit"), "--int2", "-o", str(tmp_path / "other.onnx")]) == 0
    assert onnx.load(tmp_path / "other.onnx").opset_import[0].version == 25


def test_the_verb_says_why_not_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(integer_toys.integer_vit_program(), tmp_path / "model.qvit")
    assert main(["export", str(tmp_path / "model.qvit")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("qvit: op ")
    assert said.count("\n") == 1


def test_a_missing_onnx_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("qvit.onnx_export")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(
        ImportError, match=r"needs the package 'onnx', which is not installed; pip install 'qvit\[onnx\]'"
    ):
        importlib.import_module("qvit.onnx_export")
    with pytest.raises(AttributeError, match="no attribute 'export_onxx'"):
        _ = qvit.export_onxx  # type: ignore[attr-defined]
