"""Slow: real networks of every family and method in ONNX Runtime and OpenVINO, held against the interpreter.

What is asked of a runtime: for every image, the first codes that differ differ by one and lie next to a tie. Behind them a
network of few bits goes its own way, so shares of equal codes are only asked for where nothing can go wrong.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
from PIL import Image

import qvit
import qvit_runtime
from paths import ROOT
from qvit.methods import METHODS
from qvit.onnx_export import Agreement, OnnxExportError, agreement, onnxruntime_session, openvino_session
from qvit.onnx_export.graph import IR_VERSION
from qvit.onnx_export.sessions import Session
from qvit.onnx_export.translate import translate
from qvit_runtime import program as p
from toy_models import FAMILIES, calibrated, images, learned, lively, mix_bits, swin, uniform, vit
from toy_onnx import random_images
from toy_programs import swin_program, vit_program

pytestmark = pytest.mark.slow

RUNTIMES: dict[str, Callable[[bytes], Session]] = {
    "onnxruntime": onnxruntime_session,
    "onnxruntime, not optimized": partial(onnxruntime_session, optimized=False),
    "openvino": openvino_session,
}
PAGE = ROOT / "docs/onnx.md"
TRAINED = ROOT / "experiments/results/cifar10_headwise_3bit/model.qvit"


def assert_follows(program: p.Program, x: np.ndarray, runtime: str) -> Agreement:
    """The runtime leaves the interpreter at ties only."""
    found = agreement(program, x, RUNTIMES[runtime])
    assert found.first_apart <= 1
    assert found.first_tie < 1e-3
    assert found.codes_equal > 0.5
    return found


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("family", FAMILIES)
def test_families_with_learned_head_wise_bits(family: str, runtime: str) -> None:
    model = mix_bits(learned(family))
    assert_follows(qvit.freeze(model), images(model, 8).numpy(), runtime)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("toy", [vit_program, swin_program])
def test_mid_rise_weights(toy: Callable[..., p.Program], runtime: str) -> None:
    program = toy(weight_bits=(2, 3, 7), midrise=0.5)
    assert_follows(program, random_images(program, 8), runtime)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("toy", [vit, swin])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_uniform_bits(bits: int, toy: Callable, runtime: str) -> None:
    model = calibrated(toy(), uniform(bits))
    found = assert_follows(qvit.freeze(model), images(model, 8).numpy(), runtime)
    assert found.clear_equal > 0.8


@pytest.mark.parametrize("toy", [vit, swin])
@pytest.mark.parametrize("name", METHODS)
def test_methods_are_exported_or_refused(name: str, toy: Callable, tmp_path: Path) -> None:
    refused = name in ("ivit", "fqvit")
    method, bits, model = METHODS[name], 8 if refused else 6, toy()
    config, x = method.uniform(bits, bits), images(model, 32, seed=7)
    model = method.quantize(model, config).eval()
    method.calibrate(model, config, [x], 1)
    program = method.freeze(model)
    if refused:
        with pytest.raises(OnnxExportError, match="cannot be exported"):
            qvit.export_onnx(program, tmp_path / "m.onnx")
        return
    for runtime in RUNTIMES:
        assert_follows(program, x[:8].numpy(), runtime)


def test_deit_tiny_in_its_true_size(tmp_path: Path) -> None:
    model = calibrated(lively(timm.create_model("deit_tiny_patch16_224", pretrained=False)), uniform(4), count=2)
    program, x = qvit.freeze(model), images(model, 2).numpy()
    assert qvit.export_onnx(program, tmp_path / "m.onnx").codes > 10_000_000
    assert (tmp_path / "m.onnx").stat().st_size < 3_700_000  # 4 bits of 5.7 million weights, position and ends
    for runtime in RUNTIMES:
        assert_follows(program, x, runtime)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_trained_program(runtime: str) -> None:
    program = qvit_runtime.load(TRAINED)
    x = np.random.default_rng(0).standard_normal((16, *program.buffers[program.input].shape)).astype(np.float32)
    assert assert_follows(program, x, runtime).codes_equal > 0.9


@pytest.mark.parametrize("opset", [21, 22, 23, 24, 25, 26, 27])
def test_newer_opsets_change_nothing(opset: int) -> None:
    model = calibrated(swin(), uniform(4))
    x, (graph, _) = images(model, 4).numpy(), translate(qvit.freeze(model))
    here = {name: open_session(graph.SerializeToString())(x)["output"] for name, open_session in RUNTIMES.items()}
    graph.opset_import[0].version = opset
    graph.ir_version = IR_VERSION[opset]
    onnx.checker.check_model(graph, full_check=True)
    for name, open_session in RUNTIMES.items():
        assert np.array_equal(open_session(graph.SerializeToString())(x)["output"], here[name])


def test_openvino_multiplies_integers() -> None:
    """No product takes float codes: its weights would count as compressed, and the codes be quantized a second time."""
    import openvino

    model, _ = translate(qvit.freeze(calibrated(swin(), uniform(4))))
    core = openvino.Core()
    hints = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", hints)
    facts = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    products = [fact["runtimePrecision"].get() for fact in facts if fact["layerType"].get() == "FullyConnected"]
    assert products
    assert set(products) == {"u8"}


def test_openvino_leaves_the_signal_stack_alone(tmp_path: Path) -> None:
    """In a process of its own, which a dangling stack would end at the first child that ends."""
    qvit.export_onnx(vit_program(), tmp_path / "m.onnx")
    code = f"""
import signal, subprocess, sys
from pathlib import Path
from qvit.onnx_export import openvino_session
model = Path({str(tmp_path / "m.onnx")!r}).read_bytes()
seen = []
signal.signal(signal.SIGCHLD, lambda *_: seen.append("SIGCHLD"))
first, second = openvino_session(model), openvino_session(model)
del first, second
subprocess.run([sys.executable, "-c", ""], check=True)
assert seen
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_openvino_reads_no_int2() -> None:
    with pytest.raises(RuntimeError, match="INT2"):
        agreement(
            qvit.freeze(calibrated(vit(), uniform(2))),
            np.zeros((1, 3, 16, 16), np.float32),
            openvino_session,
            int2=True,
        )


def test_the_code_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    qvit_runtime.save(qvit.freeze(calibrated(vit(), uniform(4))), "model.qvit")
    Image.new("RGB", (40, 30), (200, 100, 50)).save("cat.jpg")
    names: dict[str, np.ndarray] = {}
    shapes = []
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(block, names)
        shapes.append(names["logits"].shape if "logits" in names else None)
    assert shapes == [None, (2, 5), (2, 5), (2, 5)]
    assert names["images"].shape == (1, 3, 16, 16)


def test_qvit_imports_without_onnx() -> None:
    code = "import sys; sys.modules['onnx'] = None; import qvit, qvit.cli; assert 'qvit.onnx_export' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
