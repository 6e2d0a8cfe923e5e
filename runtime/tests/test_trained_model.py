"""A trained model on real images: design.md, decision 5, asks that the engine names the class that the interpreter names on at
least 99.5 % of images, and that top-1 is within 0.1 points. The model is the artifact of `recipes/cifar10/headwise_3bit.toml`,
the images are the 5,000 of CIFAR-10 that it was validated on."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import qvit_runtime
from engine_cases import PATHS
from qvit_runtime.preprocess import preprocess

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
RUN = ROOT / "experiments" / "results" / "cifar10_headwise_3bit"
IMAGES = ROOT.parent / "shared" / "data" / "cifar10" / "validation-00000-of-00001.parquet"
BATCH = 100


@pytest.fixture(scope="module")
def program():
    return qvit_runtime.load(RUN / "model.qvit")


@pytest.fixture(scope="module")
def images(program):
    """(images, labels), as `predict` would make them of the files."""
    parquet = pytest.importorskip("pyarrow.parquet", reason="reading the images needs pyarrow")
    if not IMAGES.exists():
        pytest.skip(f"{IMAGES.name} of CIFAR-10 is not in ../shared/data/cifar10")
    rows = parquet.read_table(IMAGES).to_pylist()
    pictures = [Image.open(io.BytesIO(row["image"]["bytes"])) for row in rows]
    return np.stack([preprocess(p, program.preprocess) for p in pictures]), np.array([row["label"] for row in rows])


def classes(execute, images):
    return np.concatenate([execute(images[at : at + BATCH]).argmax(1) for at in range(0, len(images), BATCH)])


@pytest.fixture(scope="module")
def expected(program, images):
    return classes(lambda batch: qvit_runtime.run(program, batch), images[0])


def test_the_interpreter_has_the_accuracy_of_the_result(images, expected):
    result = json.loads((RUN / "result.json").read_text())
    assert len(expected) == result["images"]
    top1 = 100 * (expected == images[1]).mean()
    assert top1 == pytest.approx(result["top1_frozen"], abs=1e-9)


@pytest.mark.parametrize("path", PATHS)
def test_engine_and_interpreter(program, images, expected, path):
    found = classes(qvit_runtime.Engine(program, path=path), images[0])
    assert (found == expected).mean() >= 0.995
    assert abs((found == images[1]).mean() - (expected == images[1]).mean()) <= 0.001
