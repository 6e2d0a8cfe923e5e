"""config.json of a card: the fields of timm's hub format where they exist, and one of ours, `qvit`.

    architecture, model_args, num_classes, label_names     what timm makes the float model from
    pretrained_cfg                                          how an image becomes the input
    qvit                                                    artifact, method, result, recipe, versions

timm reads such a file (`timm.create_model("local-dir:FOLDER")` is the float architecture with this preprocessing) and, since there
is no file with float weights, refuses `pretrained=True`. The field `qvit` is also how a folder that we wrote is known.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .facts import Facts, public_recipe

OURS = "qvit"


def config_of(facts: Facts) -> dict[str, Any]:
    """The content of config.json."""
    program, how = facts.program, facts.program.preprocess
    classes = program.buffers[program.output].shape[-1]
    return {
        "architecture": facts.architecture,
        "num_classes": classes,
        **({"label_names": list(how.labels)} if how.labels else {}),
        "model_args": {**facts.model_args, "num_classes": classes},
        "pretrained_cfg": {
            "input_size": list(program.buffers[program.input].shape),
            "fixed_input_size": True,
            "interpolation": how.interpolation,
            "crop_pct": how.crop,
            "crop_mode": how.crop_mode,
            "mean": list(how.mean),
            "std": list(how.std),
            "num_classes": classes,
        },
        OURS: {
            "artifact": "model.qvit",
            "result": {key: value for key, value in facts.result.items() if key != "bits"},  # they are in the artifact
            "recipe": public_recipe(facts.recipe),
        },
    }


def is_ours(folder: Path) -> bool:
    """A folder whose config.json we wrote."""
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    return isinstance(content, dict) and OURS in content
