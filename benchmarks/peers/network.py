"""The float model that everybody starts from, the images, and the reference logits.

Pretrained weights cannot be had everywhere and times do not depend on them, but errors do: weights as timm initialises
them (std 0.02) make every branch almost zero, and any quantization looks perfect. They are drawn here with variance
1 / fan-in, norms and tokens with some life, so that every layer matters as in a trained network. What random weights do
not have is a trained network's margin between the first class and the second: agreement of the predicted class is
therefore a harsh measure here, good for comparing contenders, and no forecast of an accuracy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .task import Task

if TYPE_CHECKING:  # torch is imported only by those who need it
    from torch import nn

FLOAT_WEIGHTS = "float.safetensors"


def build(task: Task) -> nn.Module:
    """The timm model with the weights of the task, in eval mode."""
    import timm
    from safetensors.torch import load_model

    model: nn.Module = timm.create_model(task.model, pretrained=False, **task.arguments)
    load_model(model, task.path(FLOAT_WEIGHTS))
    return model.eval()


def float_model(task: Task) -> None:
    """Preparation: draw weights and images, answer them in float32."""
    import timm
    import torch
    from safetensors.torch import save_model

    torch.set_num_threads(task.threads)
    model = timm.create_model(task.model, pretrained=False, **task.arguments).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("gamma"):
                parameter.fill_(1.0)
            elif parameter.ndim == 1:
                parameter.copy_(0.1 * noise + (1.0 if name.endswith("weight") else 0.0))
            elif "token" in name or "pos_embed" in name or "table" in name:
                parameter.copy_(0.5 * noise)
            else:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
    save_model(model, str(task.path(FLOAT_WEIGHTS)))
    height, width = model.patch_embed.img_size  # type: ignore[union-attr, misc]
    for name, count, seed in (("images.npy", task.images, 1), ("calibration.npy", task.calibration, 2)):
        np.save(task.path(name), random_images(count, height, width, seed))
    with torch.inference_mode():
        parts = [model(part).numpy() for part in torch.from_numpy(task.load("images.npy")).split(8)]
    np.save(task.path("reference.npy"), np.concatenate(parts))


def random_images(count: int, height: int, width: int, seed: int) -> np.ndarray:
    """(count, 3, height, width) float32, about zero mean and unit variance: blobs of a quarter of the image plus noise,
    since white noise all looks the same to a network."""
    rng = np.random.default_rng(seed)
    blobs = rng.standard_normal((count, 3, 4, 4)).repeat(-(-height // 4), 2).repeat(-(-width // 4), 3)
    noise = 0.3 * rng.standard_normal((count, 3, height, width))
    return (blobs[:, :, :height, :width] + noise).astype(np.float32)
