"""bench: the numbers it reports hang together; nothing here depends on how fast the machine is."""

import json

import numpy as np
import pytest

import toy_programs as toys
from qvit_runtime.artifact import save
from qvit_runtime.bench import by_name, measure, random_images, step_times
from qvit_runtime.cli import main
from qvit_runtime.engine import Engine


@pytest.fixture(scope="module")
def program():
    return toys.vit_program(bits=4)


def test_measure_and_profile(program):
    engine, images = Engine(program, threads=2), random_images(program, 3)
    timing = measure(engine, images, repeats=5)
    assert (timing.batch, timing.threads, timing.repeats, timing.path) == (3, 2, 5, engine.path)
    assert 0 < timing.minimum <= timing.lower_quartile <= timing.median <= timing.upper_quartile
    assert timing.spread >= 0
    steps = step_times(engine, images, repeats=3)
    assert sorted(i for step in steps for i in step.ops) == list(range(len(program.ops)))
    table = by_name(steps)
    assert sum(count for _, count, _ in table) == len(steps)
    assert np.isclose(sum(seconds for *_, seconds in table), sum(step.seconds for step in steps))
    with pytest.raises(ValueError, match="repeats"):
        measure(engine, images, repeats=0)


def test_verb(program, tmp_path, capsys):
    path = tmp_path / "toy.qvit"
    save(program, path)
    assert (
        main(["bench", str(path), "--repeats", "2", "--threads", "1", "--profile", "--json", str(tmp_path / "r")]) == 0
    )
    text = capsys.readouterr().out
    assert "images/s" in text
    assert "1 threads" in text
    assert "Linear+Gelu+Quantize" in text
    result = json.loads((tmp_path / "r").read_text())
    assert result["threads"] == 1
    assert len(result["steps"]) > 10
    assert main(["bench", str(path), "--repeats", "1", "--batch", "2", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["batch"] == 2
