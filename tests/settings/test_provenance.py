"""What a resume may change, and what is recorded of the source."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
from pathlib import Path

import pytest

from qvit.settings import provenance
from qvit.settings.provenance import check_recipe, is_harmless, source
from qvit.settings.recipe import RecipeError, load_recipe, recipe_from_values
from qvit.system.runs import Run


def test_what_a_change_of_the_recipe_changes(done: tuple[Path, Path]) -> None:
    """Workers change no map-style data set but do change a stream; a float row does not read the spec."""
    row = load_recipe(done[0])
    alone = dataclasses.replace(row.fit, distillation=0.0, cache_teacher=False)
    floating = dataclasses.replace(row, method="float", fit=alone)
    stream = dataclasses.replace(row, data=dataclasses.replace(row.data, dataset="wds/"))
    assert is_harmless("data.workers", row)
    assert not is_harmless("data.workers", stream)
    assert is_harmless("data.max_corrupt", row), "a run that ended at its limit goes on with a higher one"
    assert is_harmless("fit.checkpoint_activations", row), "a run that ended for want of memory goes on with less"
    assert is_harmless("fit.cuda_graph", row), "a run that began on a CPU goes on with it on a GPU"
    assert not is_harmless("fit.compile", row), "other rounding"
    assert not is_harmless("quantize.edge.bits", row)
    assert is_harmless("quantize.edge.bits", floating)
    assert not is_harmless("data.batch_size", floating)


def test_a_field_that_came_later_had_its_default(done: tuple[Path, Path], tmp_path: Path) -> None:
    values = json.loads((done[1] / "recipe.json").read_text())
    row = recipe_from_values(values)
    del values["init_bits"]
    run = Run(tmp_path)
    run.write_json("recipe.json", values)
    check_recipe(run, row)
    with pytest.raises(RecipeError, match=r"differs in init_bits; resume it with the same recipe"):
        check_recipe(run, dataclasses.replace(row, init_bits="bits.json"))


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", "-C", folder, *identity, *arguments], capture_output=True, text=True, check=True
    ).stdout


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package in a checkout, committed, beside a file that is not its business."""
    folder = tmp_path / "src" / "package"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("one = 1\n")
    (tmp_path / "README").write_text("read me\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    return folder


def test_the_source_is_a_commit_and_whether_the_package_differs_from_it(package: Path) -> None:
    commit = git(package, "rev-parse", "HEAD").strip()
    (package.parent.parent / "README").write_text("changed\n")
    (package / "notes.txt").write_text("not tracked\n")
    assert re.fullmatch("[0-9a-f]{40}", commit)
    assert source(package) == commit
    (package / "__init__.py").write_text("one = 2\n")
    assert source(package) == commit, "what was imported stays what it was"
    assert source.__wrapped__(package) == f"{commit}+changes"


def test_a_checkout_around_an_installed_package_is_not_its_source(package: Path, tmp_path: Path) -> None:
    installed = package.parent / "site-packages" / "qvit"
    installed.mkdir(parents=True)
    (installed / "__init__.py").touch()
    assert source(installed) is None
    assert source(tmp_path / "nowhere") is None


@pytest.mark.parametrize("script", [None, "exec /bin/sleep 60", "exit 128"], ids=["absent", "slow", "refuses"])
def test_git_that_does_not_answer_is_no_error(
    script: str | None, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    if script is not None:
        (programs / "git").write_text(f"#!/bin/sh\n{script}\n")
        (programs / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setattr(provenance, "GIT_SECONDS", 0.2)
    assert source(package) is None


def test_a_run_records_its_source(done: tuple[Path, Path]) -> None:
    record = json.loads((done[1] / "provenance.json").read_text())
    assert record["source"] == source(Path(provenance.__file__).parent)
