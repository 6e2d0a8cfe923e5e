"""Every method through the same pipeline: files, fields, loading, post-training and trained; what a recipe may say of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import qvit_runtime
from qvit.data import open_eval
from qvit.evaluation.evaluate import evaluate
from qvit.evaluation.outcome import cost_of_module, cost_of_program, load_predictions
from qvit.methods import METHODS, spec_label, tsptq
from qvit.pipeline.finished import load_exact, read_recipe, read_result
from qvit.pipeline.run import run_recipe
from qvit.planning.dry_run import dry_run
from qvit.settings.recipe import Recipe, RecipeError, load_recipe, recipe_from_values, recipe_to_values
from qvit.spec import FixedBits, LearnedBits, PerTensor, SingleRange, SingleScale, Spec
from toy_models import images, swin, vit
from toy_pipeline import FIELDS, UNIFORM3

TRAINED = [name for name, method in METHODS.items() if method.trains and name != "qvit"]


def recipe_for(done: tuple[Path, Path], method: str, bits: int, epochs: float) -> Recipe:
    """The toy recipe, starting from the float row of the toy run, with another method."""
    path, run = done
    base = load_recipe(path)
    return dataclasses.replace(
        base,
        method=method,
        model=dataclasses.replace(base.model, checkpoint=str(run / "float")),
        train_float=None,
        uniform_baseline=0,
        budget=None,
        quantize=METHODS[method].uniform(bits, bits),
        fit=dataclasses.replace(base.fit, epochs=epochs, cache_teacher=False),
    )


def check_row(result: dict, folder: Path, method: str) -> None:
    """Fields, files, and that the directory holds the network that result.json speaks of."""
    assert result.keys() >= FIELDS
    assert (result["method_name"], result["artifact"]) == (method, "model.qvit")
    assert result["calibration_seconds"] > 0
    assert result["gbitops"] > 0
    assert result["agreement_frozen"] > 95
    recipe = read_recipe(folder)
    assert recipe.method == method
    again = evaluate(load_exact(folder), open_eval(recipe.data))
    assert again.top1 == result["top1"]
    predictions = load_predictions(folder)
    assert (predictions["labels"] == predictions["module"]).mean() * 100 == pytest.approx(result["top1"])
    assert (predictions["labels"] == predictions["float"]).mean() * 100 == pytest.approx(result["top1_float"])
    np.testing.assert_array_equal(predictions["module"], again.predictions)
    program = qvit_runtime.load(folder / "model.qvit")
    qvit_runtime.check(program)
    images = next(iter(open_eval(recipe.data)))[0][:2].numpy()
    assert np.abs(qvit_runtime.Engine(program)(images) - qvit_runtime.run(program, images)).max() < 0.1


@pytest.mark.parametrize("method", [name for name in METHODS if name != "qvit"])
def test_post_training(method: str, done: tuple[Path, Path], tmp_path: Path) -> None:
    """Eight bits without training: close to the float model, and one command away."""
    result = run_recipe(recipe_for(done, method, 8, 0), tmp_path / "run", quiet=True)
    check_row(result, tmp_path / "run", method)
    assert (result["training_seconds"], result["images_per_second"], result["epochs"]) == (0, None, 0)
    assert result["agreement_float"] > 80
    assert result["collapse"] is None
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("method", TRAINED)
def test_trained(method: str, done: tuple[Path, Path], tmp_path: Path) -> None:
    bits = 8 if method == "ivit" else 3
    recipe = recipe_for(done, method, bits, 0.5)
    result = run_recipe(recipe, tmp_path / "run", quiet=True)
    check_row(result, tmp_path / "run", method)
    assert result["training_seconds"] > 0
    assert (tmp_path / "run" / "metrics.jsonl").exists()
    assert run_recipe(recipe, tmp_path / "run", resume=True, quiet=True) == result


@pytest.mark.parametrize("method", METHODS)
def test_options_round_trip(method: str) -> None:
    recipe = Recipe(
        method=method, quantize=METHODS[method].uniform(4, 5), fit=dataclasses.replace(Recipe().fit, epochs=0)
    )
    assert recipe_from_values(json.loads(json.dumps(recipe_to_values(recipe)))) == recipe


@pytest.mark.parametrize(
    ("value", "text"),
    [(1, "bit-widths go from 2 to 8"), (9, "bit-widths go from 2 to 8"), (4.0, "it must be a whole number")],
)
@pytest.mark.parametrize("option", ["weight_bits", "activation_bits"])
@pytest.mark.parametrize("method", ["qvit-irm", "ivit", "fqvit", "tsptq", "ptq"])
def test_impossible_bits_are_named_by_their_option(method: str, option: str, value: float, text: str) -> None:
    config = METHODS[method].config
    with pytest.raises(ValueError, match=rf"^{config.__name__}\.{option} is {value}; {text}$"):
        config(**{option: value})


@pytest.mark.parametrize(
    ("change", "label"),
    [
        ({}, "uniform W3A4"),
        ({"edge": FixedBits(4)}, "uniform W3A4"),
        ({"hidden_groups": 8}, "uniform W3A4, 8 hidden groups"),
        ({"overrides": (("head.*", FixedBits(4)),)}, "uniform W3A4 with overrides"),
        ({"overrides": (("head.*", LearnedBits()),)}, "head-wise learned bits"),
        ({"edge": LearnedBits()}, "head-wise learned bits"),
        ({"weights": LearnedBits(), "heads": PerTensor()}, "layer-wise learned bits"),
        ({"weights": LearnedBits(), "hidden_groups": 8}, "head-wise learned bits, 8 hidden groups"),
        ({"activations": LearnedBits(), "scale": SingleScale()}, "head-wise learned bits, single scale"),
        ({"activations": LearnedBits(), "scale": SingleRange()}, "head-wise learned bits, single range"),
    ],
    ids=str,
)
def test_a_row_is_uniform_where_no_bits_are_learned(change: dict, label: str) -> None:
    assert spec_label(Spec(**{"weights": FixedBits(3), "activations": FixedBits(4), **change})) == label


@pytest.mark.parametrize("method", ["ptq", "fqvit"])
def test_an_observer_is_a_value_and_not_its_name(method: str) -> None:
    config = METHODS[method].config
    with pytest.raises(
        ValueError, match=rf"^{config.__name__}\.observer is 'Percentile'; allowed: LeastSquares\(\), MinM"
    ):
        config(observer="Percentile")


@pytest.mark.parametrize("method", ["qvit-irm", "ivit", "fqvit", "tsptq"])
@pytest.mark.parametrize("make", [vit, swin])
def test_what_a_method_adds_is_on_the_device_of_the_model(make: Callable[..., nn.Module], method: str) -> None:
    """A float row that was trained on a GPU stays there, and the next row quantizes it there."""
    model = METHODS[method].quantize(make().to("meta"), METHODS[method].uniform(4, 4))
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert {name for name, tensor in state.items() if tensor.device.type != "meta"} == set()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_model_on_a_gpu_is_quantized_there(method: str) -> None:
    model = METHODS[method].quantize(vit().cuda(), METHODS[method].uniform(8, 8))
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"cuda"}


@pytest.mark.parametrize("name", ["head.weight", "head.bias", "norm.weight", "blocks.0.attn.qkv.bias"])
@pytest.mark.parametrize("method", ["qvit", "ptq", "tsptq", "fqvit", "qvit-irm", "ivit"])
def test_weights_that_are_not_finite_stop_calibration(method: str, name: str) -> None:
    model, config = vit(depth=1), METHODS[method].uniform(8, 8)
    with torch.no_grad():
        model.get_parameter(name).view(-1)[2] = float("nan")
    quantized = METHODS[method].quantize(model, config)
    with pytest.raises(FloatingPointError, match=rf"NaN or infinity in {name}: check the float weights"):
        METHODS[method].calibrate(quantized, config, [images(model, 2)], 1)


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if not method.trains and name != "ptq"])
def test_what_has_no_gradient_refuses_to_be_trained(method: str) -> None:
    """Else `fit` would move the last layers alone, and nobody would know. In eval mode gradients may be on."""
    model, config = vit(depth=1), METHODS[method].uniform(8, 8)
    quantized = METHODS[method].quantize(model, config)
    METHODS[method].calibrate(quantized, config, [images(model, 2)], 1)
    assert torch.isfinite(quantized.eval()(images(model, 2))).all()
    with pytest.raises(RuntimeError, match=r"no gradient, so .* post-training quantization; train with method 'qvit'"):
        quantized.train()(images(model, 2))
    with torch.no_grad():
        assert torch.isfinite(quantized(images(model, 2))).all()


def test_cost_is_the_same_read_off_the_module_and_off_the_program(done: tuple[Path, Path]) -> None:
    result = read_result(done[1] / "uniform3")
    program = cost_of_program(qvit_runtime.load(done[1] / "uniform3" / "model.qvit"))
    assert program["gbitops"] == pytest.approx(UNIFORM3)
    for key in ("average_weight_bits", "average_activation_bits", "weight_kib"):
        assert program[key] == pytest.approx(result[key], rel=2e-3), key
    assert program["bits"]["blocks.0.attn.v"] == result["bits"]["blocks.0.attn.v"][0] == 3


@pytest.mark.parametrize("make", [vit, swin])
def test_a_two_scaled_code_counts_its_flag_in_the_module_and_in_the_program(make: Callable[..., nn.Module]) -> None:
    model = make()
    module = tsptq.quantize(model, tsptq.TSPTQ(4, 5), quiet=True)
    tsptq.calibrate(module, [images(model, 4)], config=tsptq.TSPTQ(4, 5, rounds=1, candidates=2))
    asked, read = cost_of_module(module), cost_of_program(tsptq.freeze(module))
    for key in ("gbitops", "average_weight_bits", "average_activation_bits", "weight_kib"):
        assert read[key] == pytest.approx(asked[key], rel=1e-12), key
    assert {bits for name, bits in read["bits"].items() if name.endswith((".attention", ".fc2.input"))} == {5}


# -- recipes ----------------------------------------------------------------------------------------------------------


def written(tmp_path: Path, text: str, *overrides: str) -> Recipe:
    path = tmp_path / "x.toml"
    path.write_text(text)
    return load_recipe(path, overrides)


def test_the_table_quantize_holds_the_options_of_the_method(tmp_path: Path) -> None:
    sources = '\n[data]\ndataset = "digits"\n[model]\npretrained = true\n'
    text = 'method = "qvit-irm"\n[quantize]\nguide = 0.5\n' + sources
    assert written(tmp_path, text, "quantize.weight_bits=3").quantize == METHODS["qvit-irm"].config(
        weight_bits=3, guide=0.5
    )
    text = (
        'method = "ptq"\nfit = { epochs = 0 }\n[quantize]\nobserver = { kind = "Percentile", share = 0.999 }\n'
        + sources
    )
    options = written(tmp_path, text).quantize
    assert options.observer.share == 0.999  # type: ignore[union-attr]
    text = 'method = "lsq"\n[quantize]\nweights = { kind = "FixedBits", bits = 2 }\nactivations = { kind = "FixedBits", bits = 2 }'
    assert written(tmp_path, text + sources).quantize.weights.bits == 2  # type: ignore[union-attr]


def test_paths_are_relative_to_the_recipe(tmp_path: Path) -> None:
    """Those that it writes; those typed on the command line are relative to the working directory."""
    text = 'init_bits = "i.json"\n[model]\ncheckpoint = "a.pth"\n[budget]\nmilliseconds = 1.0\ntable = "b.json"\n[data]\ndataset = "digits"'
    recipe = written(tmp_path, text)
    assert recipe.model.checkpoint == str(tmp_path / "a.pth")
    assert recipe.init_bits == str(tmp_path / "i.json")
    assert recipe.budget is not None
    assert recipe.budget.table == str(tmp_path / "b.json")
    typed = written(tmp_path, text, "budget.table=b.json").budget
    assert typed is not None
    assert typed.table == str(Path.cwd() / "b.json")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('method = "gptq"', r"method is 'gptq'; allowed: 'qvit', 'lsq', .*'float'"),
        ('method = "ptq"', r"method 'ptq' is post-training quantization: set fit.epochs = 0"),
        ('method = "lsq"', r"method 'lsq' has fixed bits, and quantize.weights is of kind LearnedBits: give FixedBits"),
        (
            'method = "float"\n[data]\ndataset = "images"\nroot = "x"',
            r"^data.dataset 'images' has no labels to train on; use 'folder', one sub-folder per class$",
        ),
        ("calibration = -5", r"calibration is -5; it takes at least one training image"),
        ("fit = { epochs = 0 }", r"bits cannot be learned without training: give fit.epochs"),
        ('method = "qvit-irm"\nquantize = { kind = "Spec" }', r"method 'qvit-irm' takes QViTIRM in quantize, not Spec"),
        ('method = "qvit-irm"\nquantize = { heads = 1 }', r"unknown key heads in x.toml.quantize; known: weight_bits"),
        (
            'method = "qvit-irm"\ninit_bits = "i.json"',
            r"init_bits is 'i.json', but no bits are learned .* leave it out, or use method 'qvit' with LearnedBits in qua",
        ),
        (
            'method = "tsptq"\nfit = { epochs = 0 }\nbudget = { gbitops = 1.0 }',
            r"^method 'tsptq' is given its bits in \[quantize\] and meets no budget; leave \[budget\] out, or use method 'qvit'",
        ),
        ('method = "float"\ninit_bits = "i.json"', r"init_bits is 'i.json', but no bits are learned"),
        (
            'method = "lsq"\nquantize = { weights = { kind = "FixedBits", bits = 3 }, activations = { kind = "FixedBits", bits = 3 '
            '}, overrides = [["blocks.*", { kind = "LearnedBits" }]] }',
            r"method 'lsq' has fixed bits, and one of quantize.overrides is of kind LearnedBits",
        ),
        (
            'method = "float"\nfit = { epochs = 0 }',
            r"fit.epochs is 0, and a float row is nothing but training; give its epochs, or leave method 'float' out",
        ),
        ("train_float = { epochs = 0 }", r"train_float.epochs is 0, .*; give its epochs, or leave \[train_float\] out"),
        ('method = "qvit-irm"\nuniform_baseline = 3', r"uniform_baseline belongs to method 'qvit', not to 'qvit-irm'"),
    ],
)
def test_what_a_recipe_may_not_say(text: str, error: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=error):
        written(tmp_path, text)


@pytest.mark.parametrize("method", ["ptq", "qvit-irm"])
def test_dry_run_of_a_method(method: str, done: tuple[Path, Path]) -> None:
    epochs = 1 if METHODS[method].trains else 0
    kinds = [line.partition(":")[0] for line in dry_run(recipe_for(done, method, 4, epochs))]
    assert kinds == ["model", "images", "data", "calibration", *(["training"] if epochs else []), "freeze"]
