"""The README.md of a card: front matter that the hub reads, then `card.md` filled with the facts of a run.

The front matter is huggingface_hub's own `ModelCardData`, so that its fields and the form of `model-index` are right. There is
one result in it, top-1 of what is shipped: the program. Repositories are named there without their revision, or the hub would not
know them; the text keeps it.

The code in the card is meant to be pasted; tests/card/test_card.py pastes it.
"""

from __future__ import annotations

import math
import re
from importlib.resources import files
from string import Template

from huggingface_hub import EvalResult, ModelCardData

from qvit_runtime.inspection import describe

from ..methods.qvit_irm import QViTIRM
from ..settings.recipe import LOCAL
from .bits import group_table, role_table, widths
from .facts import Facts, public

METHODS = {
    "qvit": "Q-ViT ([arXiv 2201.07703](https://arxiv.org/abs/2201.07703)): scales are learned, and so are bit-widths where they differ",
    "lsq": "LSQ ([arXiv 1902.08153](https://arxiv.org/abs/1902.08153)): learned scales at given bit-widths",
    "qvit-irm": "Q-ViT of Li et al. ([arXiv 2210.06707](https://arxiv.org/abs/2210.06707))",
    "ivit": "I-ViT ([arXiv 2207.01405](https://arxiv.org/abs/2207.01405)): integer arithmetic only",
    "fqvit": "FQ-ViT ([arXiv 2111.13824](https://arxiv.org/abs/2111.13824)): without training",
    "tsptq": "TSPTQ-ViT ([arXiv 2305.12901](https://arxiv.org/abs/2305.12901)), reconstructed from the paper: without training",
    "ptq": "uniform quantization after calibration, without training",
}
UNITS = {
    "gbitops": "GBitOPs",
    "average_weight_bits": "bits per weight on average",
    "kib": "KiB of weights",
    "milliseconds": "ms per image",
}
GROUPS_DIFFER = """Heads, and hidden units where the model has them in groups, have bit-widths of their own; the last column counts the
tensors in which they differ.

<details><summary>Bits of every group</summary>

One number where all groups of the block have the same."""
MOST_LABELS = 20  # more class names than that are for config.json


def readme(facts: Facts, license_id: str, sizes: dict[str, int], no_onnx: str) -> str:
    """The text of README.md.

    sizes    bytes of the files beside it    no_onnx  why there is no model.onnx, or ""
    """
    program = facts.program
    found = widths(program)
    groups = group_table(found)
    detail = f"\n\n{GROUPS_DIFFER}\n\n{_table(groups)}\n\n</details>" if groups else ""
    values = {
        "title": f"{facts.name}, {facts.result['method']}",
        "summary": _summary(facts, sizes),
        "files": _rows(_files(sizes)),
        "accuracy": _accuracy(facts),
        "bits": f"{_arithmetic(facts)} The mean is over tensors and their groups.\n\n{_table(role_table(found))}{detail}",
        "cost": _cost(facts, sizes),
        "shape": " x ".join(map(str, program.buffers[program.input].shape)),
        "onnx": _onnx(facts, no_onnx),
        "made": _made(facts),
        "limits": _limits(facts),
    }
    return f"---\n{_front_matter(facts, license_id, not no_onnx)}\n---\n\n{_fill('card.md', values)}"


def _front_matter(facts: Facts, license_id: str, onnx: bool) -> str:
    top1 = facts.result["top1_frozen"]
    dataset, _, revision = facts.dataset.partition("@")
    scored = EvalResult(
        task_type="image-classification",
        dataset_type=dataset or "imagefolder",
        dataset_name=dataset or "images of the author",
        dataset_split=facts.split or None,
        dataset_revision=revision or None,
        metric_type="accuracy",
        metric_name="top-1 of model.qvit",
        metric_value=round((top1 or 0) / 100, 6),
    )
    return ModelCardData(
        license=license_id,
        library_name="qvit",
        pipeline_tag="image-classification",
        tags=["qvit", "quantization", "vision-transformer", *(["onnx"] if onnx else [])],
        datasets=[dataset] if dataset else None,
        base_model=facts.base_model.partition("@")[0] or None,
        metrics=["accuracy"],
        model_name=f"{facts.name}, {facts.result['method']}",
        eval_results=None if top1 is None else [scored],
    ).to_yaml()


def _summary(facts: Facts, sizes: dict[str, int]) -> str:
    result, program = facts.result, facts.program
    size = " x ".join(map(str, program.preprocess.size))
    text = (
        f"An image classifier ({program.buffers[program.output].shape[-1]} classes, images of {size} pixels): the Vision "
        f"Transformer `{facts.architecture}` of timm{_arguments(facts)} with integer weights of {result['average_weight_bits']:.2f} bits and activations of "
        f"{result['average_activation_bits']:.2f} bits on average. It takes **{_kib(sizes['model.qvit'])}** in place of "
        f"{_kib(_float_bytes(facts))} in float32, and runs on a CPU without PyTorch. It was made with qvit, which "
        "learns how many bits a Vision Transformer needs."
    )
    return f"> **Do not use this model.** It {result['collapse']}.\n\n{text}" if result.get("collapse") else text


def _files(sizes: dict[str, int]) -> list[list[str]]:
    about = {
        "model.qvit": "the network: packed integers, and how to prepare an image; a safetensors file",
        "model.onnx": "the same network for ONNX Runtime and OpenVINO",
        "config.json": "architecture, preprocessing and class names in timm's form, and how the network was trained",
    }
    return [[f"`{name}`", f"{about[name]} ({_kib(size)})"] for name, size in sizes.items()]


def _accuracy(facts: Facts) -> str:
    result, data = facts.result, facts.recipe.data
    where = f"{result['images']:,} images of {f'`{facts.dataset}`' if facts.dataset else 'a data set of the author'}"
    split = f", split `{facts.split}`" if facts.split else ""
    agreement = f"`model.qvit` gives the class of the quantized model on {result['agreement_frozen']:.2f} % of them"
    if result.get("agreement_float") is not None:
        agreement += f", and that of the float model on {result['agreement_float']:.2f} %"
    if result["top1_frozen"] is None:
        fitted = " The scales were fitted to some of these images." if facts.calibrated_on_what_judged else ""
        return f"The images ({where}{split}) had no labels, so accuracy is not known. {agreement}.{fitted}"
    rows = [
        ["", "top-1 %"],
        [f"the float model, `{facts.name}`", f"{result['top1_float']:.2f}"],
        ["the quantized model in PyTorch", f"{result['top1']:.2f}"],
        ["`model.qvit`, which is what runs", f"**{result['top1_frozen']:.2f}**"],
    ]
    seen = ", which were not trained on" if data.eval_split != data.train_split else ", which were trained on as well"
    text = f"Measured on {where}{split}{seen}. {agreement}."
    if facts.difference is not None:
        text += (
            f" Against the float model that is {facts.difference.difference:+.2f} ± {facts.difference.half_width:.2f} points "
            "(95 % interval of these images)."
        )
    return f"{_table(rows)}\n\n{text} This is one run, with seed {result['seed']}."


def _cost(facts: Facts, sizes: dict[str, int]) -> str:
    result = facts.result
    budget = ", ".join(f"{limit:.4g} {UNITS[unit]}" for unit, limit in (result["budget"] or {}).items())
    macs = describe(facts.program)["totals"]["macs"]
    rows = [
        ["", ""],
        ["one image", f"{result['gbitops']:.4g} GBitOPs, {macs / 1e6:,.1f} million multiply-accumulates"],
        ["budget that was given", budget or "none: the bit-widths were"],
        ["weights, packed", f"{result['weight_kib']:,.1f} KiB"],
        ["`model.qvit`, everything", _kib(sizes["model.qvit"])],
        ["the same numbers in float32", _kib(_float_bytes(facts))],
    ]
    return _table(rows)


def _onnx(facts: Facts, no_onnx: str) -> str:
    how = facts.program.preprocess
    if no_onnx:
        return f"There is no ONNX file here: {no_onnx}."
    if how.crop_mode != "center":
        return "For ONNX Runtime: `model.onnx` takes `image[None]` of the lines above as its input `images`; its `output` is the logits."
    values = {
        "size": str(how.size[0]),
        "resize": str(math.floor(how.size[0] / how.crop)),
        "resampling": how.interpolation.upper(),
        "mean": str(list(how.mean)),
        "std": str(list(how.std)),
    }
    return _fill("card_onnx.md", values).rstrip()


def _made(facts: Facts) -> str:
    recipe, fit, versions = facts.recipe, facts.recipe.fit, facts.result["versions"]
    training = "none: scales come from calibration"
    if fit.epochs:
        training = (
            f"{fit.epochs:g} epochs, {fit.optimizer}, learning rate {fit.learning_rate:g}, batches of "
            f"{recipe.data.batch_size * fit.accumulate}, {_teaching(facts)}"
        )
    rows = [
        ["", ""],
        ["method", METHODS[recipe.method]],
        ["float model", f"`{facts.name}`{_arguments(facts)}, weights: {_weights(facts)}"],
        ["calibration", f"{facts.result.get('calibration_images', recipe.calibration)} {_calibration(facts)}"],
        ["training", training],
        ["seed", str(recipe.seed)],
        ["started", str(public(facts.provenance["started"]))],
        ["versions", ", ".join(f"{name} {version}" for name, version in versions.items())],
        *([["command", f"`{facts.command}`"]] if facts.command else []),
    ]
    return _table(rows)


def _calibration(facts: Facts) -> str:
    """Which images the scales were fitted to."""
    return "of the images that it was judged on" if facts.calibrated_on_what_judged else "training images"


def _teaching(facts: Facts) -> str:
    """What the float model taught, by the names of the losses."""
    recipe, fit = facts.recipe, facts.recipe.fit
    losses = [f"distillation from the float model ({fit.distillation:g})"] if fit.distillation else []
    if fit.features is not None:
        losses.append(f"its features ({fit.features.weight:g})")
    if isinstance(recipe.quantize, QViTIRM) and recipe.quantize.guide:
        losses.append(f"similarities of its queries and keys, DGD ({recipe.quantize.guide:g})")
    return ", ".join(losses) or "no teacher"


def _weights(facts: Facts) -> str:
    """Where the float weights came from."""
    model, trained = facts.recipe.model, facts.recipe.train_float
    if model.checkpoint or model.name.startswith(LOCAL):
        start = "the author's own"
    elif model.pretrained:
        start = f"of `{facts.base_model}`" if facts.base_model else "those of timm"
    else:
        start = "random"
    return f"{start}, then {trained.epochs:g} epochs of training in float" if trained else start


def _arguments(facts: Facts) -> str:
    """Arguments of the architecture, which make it another network than its name says."""
    given = [f"{name}={value}" for name, value in facts.model_args.items() if name != "num_classes"]
    return f" ({', '.join(given)})" if given else ""


def _arithmetic(facts: Facts) -> str:
    """What of the program is computed in integers."""
    floats = [row["op"] for row in describe(facts.program)["placement"] if row["placement"] == "float"]
    if not floats:
        return "Everything between the image and the classes is computed in integers of so many bits."
    return f"Matrix products are computed in integers of so many bits; in float32 stay {', '.join(floats)}."


def _limits(facts: Facts) -> str:
    labels = [re.sub(r"[^\w .,()'-]", " ", label) for label in facts.program.preprocess.labels]
    known = f": {', '.join(labels)}" if 0 < len(labels) <= MOST_LABELS else ", named in `config.json`" if labels else ""
    classes = facts.program.buffers[facts.program.output].shape[-1]
    return (
        f"The model puts every image into one of its {classes} classes{known}; it has no way of saying that an image shows none of "
        "them. It inherits what the float model and its training images were biased towards. Few bits may cost some classes more "
        "than others: accuracy was measured over all of them together, and on images like those it was trained on."
    )


def _float_bytes(facts: Facts) -> int:
    """Weights and constants at four bytes each."""
    totals = describe(facts.program)["totals"]
    return 4 * totals["weight_codes"] + totals["constant_bytes"] + totals["integer_bytes"]


def _kib(size: int) -> str:
    return f"{size / 1024:,.1f} KiB"


def _rows(rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cell.replace('|', ' ') for cell in row)} |" for row in rows)


def _table(rows: list[list[str]]) -> str:
    header, *body = rows
    return "\n".join([_rows([header]), "|" + "---|" * len(header), _rows(body)])


def _fill(name: str, values: dict[str, str]) -> str:
    return Template(files(__package__).joinpath(name).read_text(encoding="utf-8")).substitute(values)
