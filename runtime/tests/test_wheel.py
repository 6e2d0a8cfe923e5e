"""The wheel in a fresh virtual environment: it needs numpy and Pillow, no torch, and everything it promises works there."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qvit_runtime import run, save
from qvit_runtime.preprocess import preprocess
from toy_programs import vit_program

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PROGRAM = vit_program(seed=2)


def call(*command: str | Path) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return subprocess.run(command, capture_output=True, text=True, env=clean, cwd="/", check=False)


def must(*command: str | Path) -> str:
    done = call(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    for package in ("scikit_build_core", "nanobind"):
        pytest.importorskip(package, reason=f"building the wheel without a download needs {package}")
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder]
    must(*pip, f"--config-settings=build-dir={folder / 'build'}", ROOT / "runtime")
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def fresh(wheel, tmp_path_factory):
    """`bin` of an environment in which nothing is installed but the wheel and what it depends on."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    venv.create(folder, with_pip=True)
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet"]
    needed = call(*pip, "--constraint", ROOT / "constraints.txt", "numpy", "pillow")
    if needed.returncode:
        pytest.skip(f"pip cannot install numpy and pillow here: {needed.stderr.strip().splitlines()[-1]}")
    must(*pip, "--no-index", wheel)  # fails if the wheel depends on anything else
    return folder / "bin"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "toy.qvit"
    save(PROGRAM, path)
    return path


def test_torch_is_absent(fresh):
    done = call(fresh / "python", "-c", "import torch")
    assert "ModuleNotFoundError: No module named 'torch'" in done.stderr
    where = must(fresh / "python", "-c", "import qvit_runtime; print(qvit_runtime.__file__)")
    assert where.startswith(str(fresh.parent))


def test_predict(fresh, model, tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))
    image.save(tmp_path / "a.png")
    result = json.loads(must(fresh / "qvit-runtime", "predict", model, tmp_path / "a.png", "--json", "-"))
    logits = run(PROGRAM, preprocess(image, PROGRAM.preprocess)[None])[0]
    assert [guess["index"] for guess in result["images"][0]["top"]] == np.argsort(-logits).tolist()


def test_inspect(fresh, model):
    assert json.loads(must(fresh / "qvit-runtime", "inspect", model, "--json", "-"))["totals"]["ops"] == len(
        PROGRAM.ops
    )


def test_bench(fresh, model, tmp_path):
    assert json.loads(must(fresh / "qvit-runtime", "bench", model, "--repeats", "2", "--json", "-"))["repeats"] == 2
    table = tmp_path / "toy.latency.json"
    must(fresh / "qvit-runtime", "bench", model, "--repeats", "1", "--table", table)
    assert json.loads(table.read_text())["format"] == "qvit latency table"
