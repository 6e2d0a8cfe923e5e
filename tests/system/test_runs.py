"""Run directories: whole files or none, logs without the future, checkpoints kept and damaged."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import torch

from qvit.system.runs import CheckpointError, Run, load_tensors, save_tensors


def test_tensors_and_state_come_back(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {"x": torch.randn(3, 4).t(), "n": torch.tensor(7), "b": torch.tensor([True])}
    state = {"rate": 0.1 + 0.2, "name": "ü", "none": None, "list": [1, 2.5]}
    save_tensors(path, tensors, state)
    loaded, found = load_tensors(path)
    assert found == state
    assert all(torch.equal(loaded[name], value) for name, value in tensors.items())


def test_shared_tensors_are_written_once_each(tmp_path: Path) -> None:
    """A quantizer that sits in two places of a module has two names in its state_dict; a file knows no aliases."""
    whole = torch.arange(6.0)
    tensors = {"a": whole, "b": whole, "part": whole[2:4]}
    save_tensors(tmp_path / "a.safetensors", tensors, {})
    loaded, _ = load_tensors(tmp_path / "a.safetensors")
    assert all(torch.equal(loaded[name], value) for name, value in tensors.items())


def test_files_are_readable_by_others(tmp_path: Path) -> None:
    """Permissions follow the umask, as with open()."""
    old = os.umask(0o022)
    try:
        path = Run(tmp_path).write_json("x.json", {})
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "is damaged or no checkpoint of qvit"),
        (b"\x08\0\0\0\0\0\0\0{}", "is damaged or no checkpoint of qvit"),
        (b"\xff" * 64, "is damaged or no checkpoint of qvit"),
        (b"\x02\0\0\0\0\0\0\0{}", r"is damaged or no checkpoint of qvit \(KeyError: 'state'\)"),
        (None, "does not exist"),
    ],
    ids=["empty", "short", "noise", "foreign", "missing"],
)
def test_damage_is_named(content: bytes | None, text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"x.safetensors {text}"):
        load_tensors(path)


def test_logs_forget_the_future_and_a_half_line(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step in range(5):
        run.append("m.jsonl", {"step": step, "loss": 0.1 * step})
    whole = (tmp_path / "m.jsonl").read_text().splitlines(keepends=True)
    with open(tmp_path / "m.jsonl", "a") as file:
        file.write('{"step": 5, "lo')
    assert [r["step"] for r in run.read("m.jsonl")] == [0, 1, 2, 3, 4]
    run.drop_after("m.jsonl", 3)
    assert (tmp_path / "m.jsonl").read_text() == "".join(whole[:4])
    run.drop_after("m.jsonl", -1)
    assert (tmp_path / "m.jsonl").read_text() == ""
    run.drop_after("missing.jsonl", 3)
    assert run.read("missing.jsonl") == []
    assert not (tmp_path / "missing.jsonl").exists()


def test_the_newest_checkpoints_are_kept_in_order(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step in (9, 10, 100):
        run.save_checkpoint(step, {"x": torch.tensor(step)}, {}, keep=2)
    assert [p.stem for p in run.checkpoints()] == ["step-000000010", "step-000000100"]
    assert load_tensors(run.checkpoints()[-1])[1] == {"step": 100}


def test_a_temporary_file_of_a_killed_write_is_no_checkpoint(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.save_checkpoint(1, {"x": torch.zeros(1)}, {}, keep=1)
    (tmp_path / "checkpoints" / ".step-000000002.safetensors.partial").write_bytes(b"half")
    assert [p.stem for p in run.checkpoints()] == ["step-000000001"]
