"""qvit plan: projections by hand from given measurements, and every kind of recipe on a toy. No clock is trusted here."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from paths import ROOT
from qvit.bits.allocate import Lagrangian, Published
from qvit.bits.budget import Budget, BudgetError
from qvit.cli import main
from qvit.cli.plan import duration, lines_of, size_of_file
from qvit.planning.memory import Memory
from qvit.planning.plan import plan, rows_of
from qvit.planning.plan_stage import PlanError, shortened
from qvit.planning.rehearsal import Rehearsal, StepSeconds, short_fit
from qvit.planning.training_schedule import schedule_of, seconds_of_training
from qvit.settings.recipe import Recipe, load_recipe
from qvit.system.runs import Run
from qvit.training.bit_schedule import BitSchedule
from qvit.training.feature_distill import FeatureDistillation
from qvit.training.fit_config import FitConfig
from toy_training import three_bits, toy_model, toy_run

RECIPES = ROOT / "recipes"
IMAGENET = sorted(
    (RECIPES / "imagenet").glob("*_3bit*.toml")
)  # the others differ in their budgets, as make.py wrote them


# -- how often ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 2},
        {"epochs": 2.5, "evaluate_every": 2.0},
        {"epochs": 3, "evaluate_every": 1.5},
        {"epochs": 2, "evaluate_every": 0.0},
        {"epochs": 2, "accumulate": 2},
        {"epochs": 1, "allocation": Published()},
    ],
    ids=str,
)
def test_the_schedule_is_what_fit_does(change: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps, lock, probes and evaluations counted in a real run."""
    config = FitConfig(**{"allocation": Lagrangian(every=2, warm_up=2), "log_every": 1, **change})
    expected = schedule_of(config, learned=True, batches=6)
    probed = []
    real = BitSchedule.probe
    monkeypatch.setattr(BitSchedule, "probe", lambda self, *sizes: probed.append(sizes) or real(self, *sizes))
    toy_run(config, tmp_path)
    records = Run(tmp_path).read("metrics.jsonl")
    assert sum("loss" in record for record in records) == expected.steps
    assert sum("top1" in record for record in records) == expected.evaluations
    assert len(probed) == expected.probes + expected.warm_up
    assert min(record["step"] for record in Run(tmp_path).read("bits.jsonl") if record["locked"]) == expected.lock_step


def test_without_learned_bits_nothing_is_probed_or_locked() -> None:
    found = schedule_of(FitConfig(epochs=2), learned=False, batches=10)
    assert (found.steps, found.lock_step, found.probes, found.warm_up) == (20, 0, 0, 0)


def test_seconds_of_training_by_hand() -> None:
    """100 steps of 2 batches: 60 before the lock, 4 of them with a probed batch, 16 batches probed first; batches twice as large."""
    config = FitConfig(epochs=10, accumulate=2, lock_at=0.6, allocation=Lagrangian(every=16, warm_up=16))
    schedule = schedule_of(config, learned=True, batches=20)
    assert (schedule.steps, schedule.lock_step, schedule.probes) == (100, 60, 4)
    found = seconds_of_training(schedule, StepSeconds(plain=1.0, probed=3.0, locked=0.5, lock=7.0), 2.0, 2)
    probed = 4 * (1.0 + 3.0)  # a step's last batch alone
    assert found == 2 * (probed + 2 * (56 * 1.0 + 40 * 0.5) + 16 * 3.0) + 7.0


@pytest.mark.parametrize("allocation", [Lagrangian(), Published()], ids=["lagrangian", "published"])
def test_the_short_fit_has_every_kind_of_step(allocation: Lagrangian | Published) -> None:
    """It probes the steps that it says it probes, and there are some of each kind."""
    short, lock_step, probed = short_fit(FitConfig(allocation=allocation), learned=True, batches=7)
    steps = short.steps(7)[1]
    assert short.lock_step(steps) == lock_step
    bits = BitSchedule(toy_model(), three_bits(), short, lock_step)
    assert probed == {step for step in range(lock_step) if bits.probes(step)}
    timed = set(range(1, lock_step - 1))
    assert len(timed & probed) >= 2
    assert len(timed - probed) >= 3
    assert steps - lock_step >= 3


# -- how much -----------------------------------------------------------------------------------------------------------

MEMORY = Memory(4, 100, 100, 200, 0, 0, 1000)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Rehearsal:
    """What every rehearsal measures: whole numbers."""
    found = Rehearsal(
        steps=StepSeconds(plain=1.0, probed=1.0, locked=1.0, lock=0.0),
        memory=MEMORY,
        checkpoint={"model": 100, "optimizer": 200},
        calibration=3.0,
        weights_fit=4.0,
        freeze=5.0,
        evaluation=0.25,
        judgement=2.0,
        forward=0.5,
        weights=100,
        artifact=10,
    )
    monkeypatch.setattr("qvit.planning.plan.rehearse", lambda context, row, device_batch: found)
    return found


def toy(**changes: object) -> Recipe:
    recipe = load_recipe(RECIPES / "demo.toml", ["model.arguments.depth=1", "model.arguments.embed_dim=32"])
    data = dataclasses.replace(recipe.data, batch_size=16, eval_batch_size=32)
    return dataclasses.replace(
        recipe, **{"data": data, "train_float": None, "uniform_baseline": 0, "calibration": 64, **changes}
    )  # type: ignore[arg-type]


def test_projection_by_hand(given: Rehearsal) -> None:
    """10 epochs of 10 steps of a batch that was small enough to be rehearsed whole, on one device and on two."""
    config = FitConfig(
        epochs=10,
        evaluate_every=2.0,
        distillation=0.5,
        activations_first=0.25,
        features=FeatureDistillation(batches=3),
        cache_teacher=True,
        allocation=Lagrangian(every=10, warm_up=5),
        keep_checkpoints=3,
    )
    budget = toy().budget
    one, two = (plan(toy(fit=config, budget=budget), devices, images=160, eval_images=40) for devices in (1, 2))
    (row,) = one.rows
    assert one.rehearsed_batch == one.batch_size == 16
    assert row.schedule is not None
    assert row.schedule.steps == 100
    assert row.seconds == {
        "calibration": 3.0,
        "training": 105.0,
        "weights fitted": 4.0,
        "principal components": 3 * 16 * 0.5,
        "evaluations while training": 5 * 40 * 0.25,
        "freeze": 5.0,
        "judgement": 80.0,
    }
    assert row.disk == {
        "model.safetensors": 100,
        "model.qvit": 10,
        "checkpoints": 900,
        "teacher cache": 2 * 1600 * 11,
    }
    assert one.seconds == one.opening + sum(row.seconds.values())
    assert one.disk == sum(row.disk.values())
    halved = {"training", "principal components", "evaluations while training", "judgement"}
    assert two.rows[0].seconds == {part: value / 2 if part in halved else value for part, value in row.seconds.items()}


def test_a_batch_that_is_too_slow_is_rehearsed_smaller(given: Rehearsal) -> None:
    """A forward pass of 2 s leaves no more than two images to a step; each measured step then counts eight times."""
    recipe = toy(fit=FitConfig(epochs=1, allocation=Lagrangian(warm_up=0)))
    small, judged = shortened(recipe, forward=2.0, seconds=10.0)
    assert (small.data.batch_size, judged) == (2, 2)
    assert small.calibration == small.data.eval_batch_size == 2
    fast, judged = shortened(recipe, forward=1e-6, seconds=10.0)
    assert (fast.data.batch_size, fast.data.eval_batch_size, fast.calibration, judged) == (16, 32, 64, 256)
    found = plan(recipe, images=160, seconds=1e-9)
    assert found.rehearsed_batch == 2
    assert found.rows[0].seconds["training"] == 10 * 8
    assert found.rows[0].seconds["calibration"] == 3.0 * 64 / 2


def test_an_odd_batch_is_rehearsed_evenly() -> None:
    """mixup mixes pairs."""
    small, _ = shortened(toy(), forward=1 / 13 / 8, seconds=10.0)
    assert small.data.batch_size == 4  # 5 are affordable


def test_every_row_of_a_recipe() -> None:
    assert [folder for folder, _ in rows_of(load_recipe(RECIPES / "demo.toml"))] == ["float", "uniform3", "."]
    assert [folder for folder, _ in rows_of(toy(method="float", budget=None))] == ["."]


# -- the whole of it ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["cifar10/lsq_w2a2", "cifar10/irm_dgd_w2a2", "cifar10/ivit_w8a8", "cifar10/ptq_w8a8", "cifar10/float"]
)
def test_every_kind_of_method_can_be_planned(name: str) -> None:
    """The smallest rehearsal of another method on generated images: memory where it trains, an artifact where it quantizes."""
    first = name.endswith("lsq_w2a2")
    recipe = load_recipe(
        RECIPES / f"{name}.toml",
        [
            *("model.arguments.depth=1", "model.arguments.embed_dim=24", "data.cache_decoded=false"),
            *(["fit.activations_first=0.5"] if first else []),
        ],
    )
    (row,) = plan(recipe, images=1000, seconds=1e-9).rows
    assert (row.rehearsal.memory is not None) == (recipe.fit.epochs > 0)
    assert ("model.qvit" in row.disk) == (recipe.method != "float")
    assert ("weights fitted" in row.seconds) == first
    if row.rehearsal.memory is not None:
        assert (row.rehearsal.memory.teacher > 0) == name.endswith("w2a2")  # they learn the teacher's classes
    assert all(value > 0 for value in row.seconds.values())


def test_verb(done: tuple[Path, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """On the recipe's own images; nothing is left behind."""
    target, change = tmp_path / "plan.json", ["--set", "fit.log_every=2"]
    assert main(["plan", str(done[0]), "--devices", "2", "--seconds", "0.01", *change, "--json", str(target)]) == 0
    out = capsys.readouterr().out
    assert "160 training images, 80 evaluation images" in out
    assert "its own images, 2 of the 32 images of a batch, scaled in proportion: an upper estimate" in out
    assert "2 devices, each as fast as this one: taken to lose no time between them" in out
    assert "the bits can cost 0.00" in out
    assert "10 steps, 5 to an epoch, 3 of them probed, bits locked after step 6" in out
    assert out.endswith(f"next: qvit run {done[0]} --set fit.log_every=2\n")
    found = json.loads(target.read_text())
    assert [row["folder"] for row in found["rows"]] == ["float", "uniform3", "."]
    assert found["disk"] > 0
    assert [row["disk"].get("teacher cache") for row in found["rows"]] == [None, None, 2 * 2 * 160 * 11]
    assert found["peak_memory"] > 0
    assert found["rows"][2]["rehearsal"]["memory"]["batch"] == 16
    assert not Path(found["out"]).exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--devices", "3"], r"3 devices cannot share batches of 512 images; give a number that divides them"),
        (["--devices", "0"], r"0 devices cannot share batches of 512 images"),
        ([], r"imagenet.*; to plan before the data is here, give --images N: how many training images there will be"),
        (
            ["--set", "data.dataset=wds/"],
            r"qvit: wds/ is a stream, which is read from end to end, .*; give --images N, how many",
        ),
        (
            ["--eval-images", "9"],
            r"9 evaluation images are asked for without a number of training images; give --images N",
        ),
        (["--images", "100"], r"100 training images do not fill one batch of 512; give a smaller batch_size"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors_say_what_to_give(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["model.arguments={depth = 1, embed_dim = 24, num_heads = 2}", "data.root=/nowhere/imagenet"]
    settings = [part for override in small for part in ("--set", override)]
    recipe = str(RECIPES / "imagenet" / "deit_tiny_3bit.toml")
    assert main(["plan", recipe, *settings, *arguments, "--seconds", "0.01"]) == 2
    assert re.search(text, capsys.readouterr().err)


def test_a_budget_out_of_reach_is_refused() -> None:
    recipe = toy()
    assert recipe.budget is not None
    with pytest.raises(BudgetError, match="cannot be met"):
        plan(
            dataclasses.replace(recipe, budget=dataclasses.replace(recipe.budget, gbitops=1e-6)),
            images=160,
            seconds=1e-9,
        )


def test_a_budget_of_uniform_bits_is_planned_as_a_number() -> None:
    found = plan(toy(budget=Budget(uniform=3)), images=160, seconds=1e-9)
    assert found.budget is not None
    assert found.reach is not None
    assert found.budget.unit == "gbitops"
    assert found.reach[0] < found.budget.limit < found.reach[1]
    assert f"budget {found.budget.limit:g} gbitops; the bits can cost" in "\n".join(lines_of(found, Path("runs/x")))


def test_plan_errors_are_for_users() -> None:
    assert issubclass(PlanError, ValueError)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.5, "0.5 s"), (61, "1 min 1 s"), (3599.8, "60 min 0 s"), (7260, "2 h 1 min"), (90000, "1 d 1 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_sizes() -> None:
    assert [size_of_file(size) for size in (12, 2048, 3 * 2**20, 2**31)] == [
        "12 bytes",
        "2.0 KiB",
        "3.0 MiB",
        "2.0 GiB",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("path", IMAGENET, ids=lambda path: path.stem)
def test_every_recipe_for_imagenet_can_be_planned(path: Path) -> None:
    recipe = load_recipe(path, ["data.workers=0"])  # torch warns of more than there are processors
    found = plan(recipe, images=1_281_167, eval_images=50_000, seconds=1e-9)
    (row,) = found.rows
    assert row.schedule is not None
    assert row.schedule.steps == (750_600 if found.batch_size == 512 else 4 * 10_009)
    assert found.reach is not None
    assert row.rehearsal.memory is not None
