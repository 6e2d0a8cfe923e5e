"""The float model: unknown names and arguments, and checkpoints that do not fit or should not be opened."""

from __future__ import annotations

import argparse
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from timm.utils import CheckpointSaver, ModelEmaV3
from torch import nn

from qvit.pipeline.float_model import create_float_model
from qvit.settings.recipe import ModelConfig
from qvit.system.runs import CheckpointError

SMALL = {"img_size": 32, "patch_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2}


def make(checkpoint: Path | str = "", num_classes: int = 4, **changes: object) -> nn.Module:
    arguments = {**SMALL, **changes}
    return create_float_model(ModelConfig("vit_tiny_patch16_224", arguments, False, str(checkpoint), num_classes))


def norm_weight(model: nn.Module) -> float:
    """One of the weights of the last norm: 1 where nothing was loaded."""
    return float(model.state_dict()["norm.weight"][0])


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("wrapped", [None, "model", "state_dict"])
def test_weights_come_back(suffix: str, wrapped: str | None, tmp_path: Path) -> None:
    model, path = make(), tmp_path / f"weights{suffix}"
    state = {name: value + 1 for name, value in model.state_dict().items()}
    if suffix == ".pth":
        torch.save({wrapped: state, "epoch": 3} if wrapped else state, path)
    elif wrapped is None:
        save_file(state, path)
    else:
        pytest.skip("safetensors files are flat")
    loaded = make(path)
    assert not loaded.training
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())


@pytest.mark.parametrize("averaged", [False, True], ids=["plain", "ema"])
def test_a_checkpoint_of_timms_train_py(averaged: bool, tmp_path: Path) -> None:
    """As its CheckpointSaver writes it: options in a Namespace, optimizer, metric; averaged weights where there are any."""
    model = make()
    ema = ModelEmaV3(model)
    torch.nn.init.constant_(ema.module.norm.weight, 2.0)
    saver = CheckpointSaver(
        model,
        torch.optim.AdamW(model.parameters()),
        args=argparse.Namespace(model="vit_tiny_patch16_224", lr=1e-3, opt_betas=(0.9, 0.99), pretrained=False),
        model_ema=ema if averaged else None,
        checkpoint_dir=str(tmp_path),
        recovery_dir=str(tmp_path),
    )
    saver.save_checkpoint(3, metric=71.5)
    for name in ("model_best.pth.tar", "last.pth.tar"):
        assert norm_weight(make(tmp_path / name)) == (2.0 if averaged else 1.0)


def test_prefixes_of_wrapped_models(tmp_path: Path) -> None:
    state = {f"module._orig_mod.{name}": value + 1 for name, value in make().state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    assert norm_weight(make(tmp_path / "w.pth")) == 2.0


def test_unknown_name_lists_similar_ones() -> None:
    with pytest.raises(
        ValueError, match=r"timm has no model 'deit_tinny_patch16_224'; similar: .*deit_tiny_patch16_224"
    ):
        create_float_model(ModelConfig("deit_tinny_patch16_224"))


def test_unknown_argument() -> None:
    with pytest.raises(ValueError, match=r"timm cannot make vit_tiny_patch16_224 with .*depht.*: .*depht"):
        make(depht=3)


def test_wrong_number_of_classes_is_said(tmp_path: Path) -> None:
    save_file(make(num_classes=7).state_dict(), tmp_path / "w.safetensors")
    text = (
        r"does not fit the model: 2 of another shape \(head.bias is \(7,\), the model has \(4,\), "
        r"head.weight is \(7, 16\), the model has \(4, 16\)\). Check .*num_classes"
    )
    with pytest.raises(CheckpointError, match=text):
        make(tmp_path / "w.safetensors")


def test_missing_and_unknown_keys_are_counted_and_named(tmp_path: Path) -> None:
    state = make(depth=2).state_dict()
    del state["cls_token"]
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(
        CheckpointError, match=r"1 missing \(cls_token\); 12 unknown \(blocks.1.attn.proj.bias, .*, \.\.\.\)"
    ):
        make(tmp_path / "w.safetensors")


class Evil:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(Evil.target),)

    target = Path()


def test_a_malicious_pickle_is_refused(tmp_path: Path) -> None:
    Evil.target = tmp_path / "owned"
    torch.save({"model": Evil()}, tmp_path / "zip.pth")
    torch.save({"args": argparse.Namespace(model=Evil())}, tmp_path / "namespace.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"model": Evil()}, protocol=2))
    for name in ("zip.pth", "namespace.pth", "plain.pth"):
        with pytest.raises(
            CheckpointError, match=rf"{name} cannot be read as weights \(UnpicklingError\); give a .saf"
        ):
            make(tmp_path / name)
    assert not Evil.target.exists()


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
@pytest.mark.parametrize("keep", [0, 7, 100, -20], ids=["empty", "7-bytes", "100-bytes", "cut-tail"])
def test_truncated_files_are_refused(name: str, keep: int, tmp_path: Path) -> None:
    path = tmp_path / name
    state = make().state_dict()
    if name.endswith(".pth"):
        torch.save(state, path)
    else:
        save_file(state, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=rf"{name} cannot be read as weights"):
        make(path)


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, torch.zeros(2)], ids=["list", "numbers", "tensor"])
def test_what_is_no_state_dict(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"holds no state_dict; expected names mapped to tensors"):
        make(tmp_path / "w.pth")


def test_the_directory_of_a_float_run(tmp_path: Path) -> None:
    """Its weights are those of the run; before the run is finished there are none."""
    with pytest.raises(
        CheckpointError, match=r"model.safetensors; a run directory has model.safetensors when it is fin"
    ):
        make(tmp_path)
    model = make()
    torch.nn.init.constant_(model.norm.weight, 2.0)  # type: ignore[union-attr, arg-type]
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    assert torch.equal(make(tmp_path).norm.weight, model.norm.weight)  # type: ignore[union-attr, arg-type]


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no checkpoint .*none.pth"):
        make(tmp_path / "none.pth")
