"""The folder of a card: with and without an ONNX file, written twice, broken off, and the verb."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

import qvit_runtime
from qvit.card import write_card
from qvit.cli import main
from qvit.system.storage import write_atomic
from toy_integer_programs import integer_vit_program

pytest.importorskip("onnx")


def test_a_program_that_onnx_cannot_say(done: tuple[Path, Path], tmp_path: Path) -> None:
    run = shutil.copytree(done[1], tmp_path / "run")
    qvit_runtime.save(integer_vit_program(), run / "model.qvit")
    card = write_card(run, tmp_path / "card", "mit")
    assert not (tmp_path / "card" / "model.onnx").exists()
    assert "cannot be exported" in card.no_onnx
    text = (tmp_path / "card" / "README.md").read_text()
    assert f"There is no ONNX file here: {card.no_onnx}." in text
    assert "- onnx" not in text
    assert "Everything between the image and the classes is computed in integers" in text


def test_without_the_extra(done: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a card without an ONNX file has none of an earlier one."""
    write_card(done[1], tmp_path / "card", "mit")
    monkeypatch.setitem(sys.modules, "qvit.onnx_export", None)
    card = write_card(done[1], tmp_path / "card", "mit", overwrite=True)
    assert card.no_onnx
    assert sorted(path.name for path in (tmp_path / "card").iterdir()) == ["README.md", "config.json", "model.qvit"]
    assert set(card.sizes) == {"README.md", "config.json", "model.qvit"}


def test_only_a_folder_of_ours_is_written_to(done: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "card"
    write_card(done[1], out, "mit")
    (out / ".gitattributes").write_text("kept")
    with pytest.raises(FileExistsError, match=r"card is not empty; give another folder, or --overwrite"):
        write_card(done[1], out, "mit")
    write_card(done[1], out, "other", overwrite=True)
    assert "license: other" in (out / "README.md").read_text()
    assert (out / ".gitattributes").read_text() == "kept"
    for foreign in ({}, {"architecture": "x"}, 3, None, ["qvit"], "by qvit"):
        (out / "config.json").write_text(json.dumps(foreign))
        with pytest.raises(
            FileExistsError, match=r"card is not empty and qvit card did not write it.*nothing was changed"
        ):
            write_card(done[1], out, "mit", overwrite=True)
    assert "license: other" in (out / "README.md").read_text()


def test_a_card_that_was_broken_off_has_no_file_of_another_run(
    done: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it stops: no README, and no artifact or ONNX file beside a config.json that is not theirs."""
    real = write_atomic
    for last in ("config.json", "model.qvit"):
        out = tmp_path / last
        write_card(done[1], out, "mit")
        old = {path.name: path.read_bytes() for path in out.iterdir()}

        def die(path: Path, data: bytes, last: str = last) -> None:
            real(path, data)
            if path.name == last:
                raise KeyboardInterrupt

        with monkeypatch.context() as broken:
            broken.setattr("qvit.card.write_atomic", die)
            with pytest.raises(KeyboardInterrupt):
                write_card(done[1] / "uniform3", out, "mit", overwrite=True)
        assert sorted(path.name for path in out.iterdir()) == sorted({"config.json", last})
        assert (out / "config.json").read_bytes() != old["config.json"]
        assert write_card(done[1], out, "mit", overwrite=True).sizes
        assert {path.name: path.read_bytes() for path in out.iterdir()} == old


def test_a_card_that_was_broken_off_has_no_readme(
    done: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_card(done[1], tmp_path / "card", "mit")
    with monkeypatch.context() as broken:
        broken.setattr("qvit.card._write_onnx", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_card(done[1], tmp_path / "card", "mit", overwrite=True)
    assert not (tmp_path / "card" / "README.md").exists()
    write_card(done[1], tmp_path / "card", "mit", overwrite=True)
    assert (tmp_path / "card" / "README.md").exists()


def test_verb(
    done: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["card", str(done[1] / "uniform3"), "--license", "mit", "--json", "card.json"]) == 0
    assert "next: read hub/uniform3/README.md" in capsys.readouterr().out
    found = json.loads((tmp_path / "card.json").read_text())
    assert found["sizes"]["model.qvit"] == (tmp_path / "hub/uniform3/model.qvit").stat().st_size
    for arguments, text in (
        ([str(done[1] / "float"), "--license", "mit"], "is a float run and has no artifact; give a quantized run"),
        ([str(done[1]), "--license", "My License"], "licence 'My License' is no identifier of the hub; they look like"),
        ([str(done[1]), "--license", "mit", "--dataset", "/data"], "data set '/data' is no name such as cifar10"),
        (["nowhere", "--license", "mit"], "nowhere has no recipe.json, so it is no run directory"),
    ):
        assert main(["card", *arguments, "-o", "other"]) == 2
        assert text in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
