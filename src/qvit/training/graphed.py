"""GraphedNetwork: forward and backward pass of a step as two launches instead of a thousand (CUDA graphs).

Problem. On a GPU a small model's step is not arithmetic but launching: some thousand kernels of a few microseconds, each of which
costs the CPU more than the GPU. Once the bits are final every step launches the same kernels with the same arguments, so they
are recorded once and replayed: same kernels, same numbers bit for bit.

    recorded    the network in training mode, within the autocast of the run, for batches of one shape; and its backward pass
    not         loss, clipping, optimizer, and batches of another shape, which run as ever

Recording starts when bits are final (a width that moves is data, but whether its gradient is wanted decides which kernels run), and
at step 0 where none is learned. What watches the inside of the network, or computes it twice, would be recorded once and
not run again; `compute.check_compute` refuses it. So it does fit.accumulate: gradients of one batch live where those of the next are written.

Done by torch.cuda.make_graphed_callables. It costs the memory of one more set of activations.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

Network = Callable[[Tensor], Tensor]


class _InAutocast(nn.Module):
    """The network within its autocast. Its parameters are those that the recorded backward pass gives gradients of."""

    def __init__(self, network: nn.Module, precision: str) -> None:
        super().__init__()
        self.network, self.bf16 = network, precision == "bf16"
        self.train()

    def forward(self, images: Tensor) -> Tensor:
        """What the network gives; without the cache of autocast, whose casts would be recorded for one use and kept for another."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16, cache_enabled=False):
            return self.network(images)


class GraphedNetwork:
    """A network whose training passes are replayed, once `record` was called; before, and for other shapes, the network itself.

    network    in training mode whenever this is called
    precision  `fit.precision`
    """

    def __init__(self, network: nn.Module, precision: str) -> None:
        self.network, self.precision = network, precision
        self.replayed: Network | None = None
        self.shape: torch.Size | None = None

    def record(self, images: Tensor) -> None:
        """Record both passes for batches like `images`, the first time this is called.

        Draws random numbers where the network does. Where the network cannot be recorded a warning says why, and it goes on
        as it is.
        """
        if self.shape is not None:
            return
        self.shape = images.shape
        _expect_two_streams()
        module = _InAutocast(self.network, self.precision)
        try:
            torch.cuda.make_graphed_callables(
                module, (images.clone(),), allow_unused_input=True
            )  # changes module.forward
            self.replayed = module
        except RuntimeError as error:
            warnings.warn(
                f"fit.cuda_graph: this network cannot be recorded, so it is launched step by step ({error})",
                stacklevel=2,
            )

    def forget(self) -> None:
        """Before parameters change in a way that is not a step: `record` records anew."""
        self.replayed = self.shape = None

    def __call__(self, images: Tensor) -> Tensor:
        """Logits of a batch, with a gradient."""
        if self.replayed is None or images.shape != self.shape:
            return self.network(images)
        return self.replayed(images)


def _expect_two_streams() -> None:
    """Keep autograd from warning, as torch does from 2.10 on, that gradients come from another stream: the one they were recorded on."""
    switch = getattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch", None)
    if switch is not None:
        switch(False)
