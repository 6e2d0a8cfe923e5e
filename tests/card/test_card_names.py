"""What a card names: what is public, and no path, user or host of the machine that made the run."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

import qvit_runtime
from qvit.card import write_card
from qvit.card.facts import CardError, public, read_facts
from qvit.pipeline.finished import read_result

pytest.importorskip("onnx")


def test_no_path_user_or_host_gets_into_the_folder(done: tuple[Path, Path], tmp_path: Path) -> None:
    """A run on someone's machine, with a path wherever a path can be."""
    run, secret = shutil.copytree(done[1], tmp_path / "run"), "/home/mallory/secret host/x"
    recipe = json.loads((run / "recipe.json").read_text())
    recipe["model"] |= {"name": f"local-dir:{secret}", "checkpoint": f"{secret}/w.pth"}
    recipe["data"] |= {"root": secret, "class_map": "~mallory/classes.txt", "dataset": f"hfds/{secret}"}
    recipe["data"]["eval_split"] = f"{secret}/val-{{0..9}}.tar|80"
    (run / "recipe.json").write_text(json.dumps(recipe))
    result = json.loads((run / "result.json").read_text()) | {"model": f"local-dir:{secret}"}
    (run / "result.json").write_text(json.dumps(result))
    command = [
        f"{secret}/qvit",
        "run",
        "C:\\mallory\\my.toml",
        f"--out={secret}",
        "--set",
        f"data.root={secret}",
        "~mallory",
    ]
    provenance = json.loads((run / "provenance.json").read_text())
    (run / "provenance.json").write_text(json.dumps(provenance | {"command": command, "started": f"on {secret}"}))
    program = qvit_runtime.load(run / "model.qvit")
    named = dataclasses.replace(program, name=f"local-dir:{secret}", metadata={"row": "a row", "from": secret})
    qvit_runtime.save(named, run / "model.qvit")
    write_card(run, tmp_path / "card", "other")
    for file in (tmp_path / "card").iterdir():
        content = file.read_bytes()
        for word in (b"mallory", b"secret", b"/home", str(tmp_path).encode()):
            assert word not in content, (file.name, word)
    text = (tmp_path / "card" / "README.md").read_text()
    assert "`qvit run my.toml --out=... --set data.root=... ...`" in text
    assert "80 images of a data set of the author, which were not trained on" in text
    assert "weights: the author's own, then 0.5 epochs" in text
    assert text.count("vit_tiny_patch16_224") > 2


@pytest.mark.parametrize(
    "text",
    [
        *(
            "/data",
            "~",
            "~me",
            "./x",
            "../x",
            "a/b/c",
            "x=/data",
            "C:\\\\x",
            "local-dir:/x",
            "hfds//data",
            "hfds/./x",
            "hfds/../x",
        ),
        *("hf-hub:../x", "hf-hub:a/b/c", "hfds/a/~b", "wds/{0..9}.tar"),
    ],
)
def test_what_may_be_a_path_is_hidden(text: str) -> None:
    assert public({"a": [text, 1, None]}) == {"a": ["...", 1, None]}


@pytest.mark.parametrize(
    "text", ["hf-hub:org/name", "hf-hub:org/name@v1.2", "hfds/cifar10", "hfids/a-b/c_d", "adamw", "", "1.0"]
)
def test_names_are_shown(text: str) -> None:
    assert public(text) == text


def test_an_older_run_from_the_hub_does_not_say_its_architecture(done: tuple[Path, Path], tmp_path: Path) -> None:
    """Runs from before result.json had it: a name of timm's registry says it, a repository does not."""
    run = shutil.copytree(done[1], tmp_path / "run")
    result, recipe = read_result(run), json.loads((run / "recipe.json").read_text())
    del result["architecture"], result["model_args"]
    (run / "result.json").write_text(json.dumps(result))
    recipe["model"]["name"] = "vit_tiny_patch16_224.augreg_in21k"
    (run / "recipe.json").write_text(json.dumps(recipe))
    facts = read_facts(run)
    assert (facts.architecture, facts.model_args["embed_dim"]) == ("vit_tiny_patch16_224", 16)
    recipe["model"]["name"] = "hf-hub:someone/vit"
    (run / "recipe.json").write_text(json.dumps(recipe))
    with pytest.raises(
        CardError, match="made by an older qvit from hf-hub:someone/vit and does not say which architecture"
    ):
        read_facts(run)


def test_a_data_set_of_the_hub_is_named(done: tuple[Path, Path], tmp_path: Path) -> None:
    run = shutil.copytree(done[1], tmp_path / "run")
    recipe = json.loads((run / "recipe.json").read_text())
    for dataset, name in (("hfds/someone/pictures", "someone/pictures"), ("digits", "digits"), ("hfds/./x", "")):
        recipe["data"] |= {"dataset": dataset, "root": ""}
        (run / "recipe.json").write_text(json.dumps(recipe))
        assert read_facts(run).dataset == name
