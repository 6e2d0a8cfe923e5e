"""benchmarks/peers.py: what is made of the measurements, the list of contenders, and (slow) a toy contest of all of them."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from paths import ROOT
from peers.contenders import CONTENDERS
from peers.network import random_images
from peers.process import ContenderError, reason
from peers.race import errors, missing
from peers.table import HEAD, markdown, rows, timing
from peers.task import Task
from peers.worker import label, turn

SCRIPT = ROOT / "benchmarks" / "peers.py"
TOY = {"img_size": 64, "depth": 2, "embed_dim": 48, "num_heads": 3, "num_classes": 10}


def measured(milliseconds):
    return {
        "rounds": [[milliseconds, milliseconds], [milliseconds]],
        "load_seconds": 1.0,
        "first_seconds": 0.5,
        "peak_rss_mib": 100.0,
        "file_bytes": 2**20,
        "max_error": 0.25,
        "relative_error": 0.125,
        "agreement": 0.5,
    }


def results(**milliseconds):
    """Everybody failed but those that are given."""
    return {c.key: measured(milliseconds[c.key]) if c.key in milliseconds else {"failed": "why"} for c in CONTENDERS}


def test_a_part_of_the_contenders_does_not_replace_the_result_of_others(tmp_path):
    file = tmp_path / "peers_deit_tiny_patch16_224_b1_avx2.json"
    file.write_text(json.dumps({"rows": [{"key": "eager"}, {"key": "qvit_4"}]}))
    command = [sys.executable, str(SCRIPT), "--only", "qvit_4", "--isa", "avx2", "--out", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert f"{file} has the result of other contenders (eager, qvit_4); give a --name" in ended.stderr
    assert json.loads(file.read_text())["rows"][0]["key"] == "eager"


def test_timing_is_median_and_interquartile_range_of_all_calls():
    found = timing([[1.0, 2.0], [3.0, 4.0, 5.0]])
    assert found["ms"] == 3.0
    assert found["spread"] == pytest.approx((4.0 - 2.0) / 3.0)
    assert found["ms_minimum"] == 1.0
    assert found["calls"] == 5
    assert found["ms_per_round"] == [1.5, 4.0]
    assert found["ms_best_round"] == 1.5


def test_ratios_are_to_eager_and_to_the_best_int8_peer():
    table = {row["key"]: row for row in rows(CONTENDERS, results(eager=24.0, ort=6.0, ort_dynamic=12.0, qvit_4=4.0))}
    assert table["qvit_4"]["times_eager"] == 6.0
    assert table["qvit_4"]["times_best_int8"] == 3.0  # ort is faster, but float
    assert table["ort_dynamic"]["times_best_int8"] == table["ort_dynamic"]["times_best_int8_best_round"] == 1.0


def test_ratios_to_what_did_not_run_are_left_out():
    table = {row["key"]: row for row in rows(CONTENDERS, results(qvit_4=4.0))}
    assert table["qvit_4"]["times_eager"] is None
    assert table["qvit_4"]["times_best_int8"] is None


def test_a_contender_that_failed_keeps_its_row_with_the_reason():
    table = rows(CONTENDERS, results(eager=24.0))
    assert [row["key"] for row in table] == [c.key for c in CONTENDERS]
    lines = markdown(table).splitlines()
    assert len(lines) == 2 + len(CONTENDERS)
    assert all(line.count("|") == len(HEAD) + 1 for line in lines)
    assert lines[2] == "| PyTorch eager fp32 | 24.00 | 0% | 24.00 | 1.00 |  | 0.25 | 0.12 | 50% | 1.50 | 100 | 1.0 |"
    assert "failed: why" in lines[3]


def test_titles_say_who_was_not_kept_to_an_instruction_set():
    table = {row["key"]: row["title"] for row in rows(CONTENDERS, results(), isa="avx2")}
    assert table["ort"] == "ONNX Runtime fp32 (not kept to avx2)"
    assert table["qvit_4"] == "qvit 4/4"


def test_errors_against_the_float_model():
    reference = np.array([[3.0, 0.0], [0.0, 4.0]], np.float32)
    assert errors(reference, reference) == {"max_error": 0.0, "relative_error": 0.0, "agreement": 1.0}
    found = errors(np.array([[0.0, 0.0], [4.0, 4.0]], np.float32), reference)
    assert found == {"max_error": 4.0, "relative_error": 1.0, "agreement": 0.5}


def test_contenders_have_different_names_and_the_peers_are_complete():
    keys = [c.key for c in CONTENDERS]
    assert len(set(keys)) == len(keys)
    assert len({c.title for c in CONTENDERS}) == len(keys)
    assert {c.key for c in CONTENDERS if c.int8} == {
        "ort_static",
        "ort_static_products",
        "ort_dynamic",
        "openvino_int8",
        "torchao",
        "torchao_compile",
    }
    assert {"eager", "compile", "ort", "openvino"} < set(keys)
    assert {f"qvit_{bits}" for bits in (8, 6, 4, 3, 2, "mixed")} < set(keys)
    assert {f"qvit_{name}_{runtime}" for name in ("4", "mixed") for runtime in ("ort", "openvino")} < set(keys)


def test_preparations_of_different_functions_have_different_names():
    steps = {step for c in CONTENDERS for step in c.preparations}
    assert len({label(step) for step in steps}) == len(steps)


def test_the_lists_of_contenders_import_no_peer():
    peers = {name for c in CONTENDERS for name in c.imports}
    code = f"import sys, peers.worker; assert not {peers} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=SCRIPT.parent)


def test_what_is_not_installed_is_named():
    assert missing(replace(CONTENDERS[0], imports=("json", "no_such_package.part"))) == "no_such_package.part"
    assert not missing(replace(CONTENDERS[0], imports=("json",)))


def test_a_turn_makes_at_least_one_timed_call():
    calls = []
    times = turn(lambda images: calls.append(images), np.zeros(1), 0.0)
    assert len(times) == 1
    assert len(calls) == 2  # and one that is not counted


def test_the_reason_is_the_error_and_not_the_last_word(tmp_path):
    log = tmp_path / "log"
    log.write_text("W: harmless\nRuntimeError: no such op\nbye\n")
    assert reason(log, 1) == "RuntimeError: no such op"
    assert reason(log, -11) == "killed by SIGSEGV"
    log.write_text("")
    assert reason(log, 1) == "it ended without a word"
    assert issubclass(ContenderError, Exception)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"isa": "sse"}, "isa is 'sse'; allowed: native, avx2"),
        ({"batch": 0}, "batch is 0"),
        ({"batch": 3}, "images is 64; it must be a multiple of the batch, 3"),
    ],
)
def test_a_task_says_what_is_wrong_with_it(change, match):
    with pytest.raises(ValueError, match=match):
        Task(**{"model": "m", "batch": 1, "threads": 1, "isa": "native", "work": "", **change})


def test_a_task_survives_its_file(tmp_path):
    task = Task("m", 2, 1, "avx2", str(tmp_path), arguments={"depth": 2})
    task.save()
    assert Task.read(str(tmp_path)) == task


def test_images_are_reproducible_and_normalised():
    images = random_images(4, 30, 22, seed=1)
    assert images.shape == (4, 3, 30, 22)
    assert images.dtype == np.float32
    np.testing.assert_array_equal(images, random_images(4, 30, 22, seed=1))
    assert not np.array_equal(images, random_images(4, 30, 22, seed=2))
    assert abs(images.mean()) < 0.3
    assert 0.7 < images.std() < 1.4


@pytest.mark.slow
def test_a_toy_contest(tmp_path):
    pytest.importorskip("onnxscript", reason="the extra `bench` is not installed, or not all of it")
    command = [sys.executable, str(SCRIPT), "--model-arguments", json.dumps(TOY), "--threads", "1", "--json", "-"]
    command += ["--images", "8", "--calibration", "8", "--rounds", "2", "--seconds", "0.01", "--work", str(tmp_path)]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert [row["key"] for row in result["rows"]] == [c.key for c in CONTENDERS]
    ran = {}
    for row in result["rows"]:
        if "failed" in row:
            assert row["failed"].endswith("is not installed"), row
        else:
            ran[row["key"]] = row
    assert {"eager", "compile", "qvit_8", "qvit_6", "qvit_4", "qvit_3", "qvit_2", "qvit_mixed"} <= set(ran)
    for key in {"eager", "compile", "ort", "openvino"} & set(ran):
        assert ran[key]["relative_error"] < 1e-4, key
    for key in {"qvit_8", "torchao", "torchao_compile", "ort_static", "ort_dynamic", "openvino_int8"} & set(ran):
        assert 0 < ran[key]["relative_error"] < 0.2, key
    by_width = [ran[f"qvit_{bits}"]["relative_error"] for bits in (8, 6, 4, 3, 2)]
    assert by_width == sorted(by_width)
    sizes = [ran[f"qvit_{bits}"]["file_bytes"] for bits in (2, 3, 4, 6, 8)]
    assert sizes == sorted(sizes)
    for name in ("4", "mixed"):
        for runtime in {"ort", "openvino"} & {key.rpartition("_")[2] for key in ran}:
            here, there = ran[f"qvit_{name}"], ran[f"qvit_{name}_{runtime}"]
            assert there["relative_error"] == pytest.approx(here["relative_error"], rel=0.2)
    detail = ran["qvit_mixed"]["detail"]
    assert float(detail["gbitops"]) <= float(detail["budget"])
