"""GraphedNetwork: forward and backward pass of a step as two launches instead of a thousand (CUDA graphs).

Problem. On a GPU a small model's step is not arithmetic but launching: some thousand kernels of a few microseconds, each of which
costs the CPU more than the GPU. Once the bits are final every step launches the same kernels with the same arguments, so they
are recorded once and replayed: the same kernels, so the same numbers.

    recorded    the network in training mode, within the autocast of the run, for batches of one shape; and its backward pass
    not         loss, clipping, optimizer, and batches of another shape, which run as ever

Recording starts when bits are final (a width that moves is data, but whether its gradient is wanted decides which kernels run), and
at step 0 where none is learned: what is gained is a share of the steps after the lock, so more with `fit.lock_at = 0.05` than with 0.6.
What watches the inside of the network, or computes it twice, would be recorded once and not run again, so `FitConfig` and
`compute.check_graph` refuse it; and fit.accumulate, because gradients of one batch live where those of the next are written.

Done by torch.cuda.make_graphed_callables. It costs the memory of one more set of activations.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


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
        self.replayed: _InAutocast | None = None
        self.shape: torch.Size | None = None

    def record(self, images: Tensor) -> None:
        """Record both passes for batches like `images`, unless that was done for such a batch or a larger one.

        Runs the network a few times in training mode: random numbers are drawn where it draws some, buffers are put back.

        Raises RuntimeError when it cannot be recorded.
        """
        if self.shape is not None and len(images) <= self.shape[0]:
            return  # the batch that is left over at the end of an epoch runs as ever
        self.close()
        module = _InAutocast(self.network, self.precision)
        kept = [(buffer, buffer.clone()) for buffer in self.network.buffers()]
        _expect_two_streams()
        try:  # gives the module another forward
            torch.cuda.make_graphed_callables(module, (images.clone(),), allow_unused_input=True)
        except RuntimeError as error:
            cause = error.__context__ or error  # an error within a recording ends it, which is an error of its own
            raise RuntimeError(
                f"fit.cuda_graph: the passes of this network cannot be recorded ({cause}); set fit.cuda_graph = false, and go on "
                "from the newest checkpoint if there is one"
            ) from error
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)
        self.replayed, self.shape = module, images.shape

    def close(self) -> None:
        """Free what was recorded. `record` records anew: needed where the network changes in a way that is not a step."""
        if self.replayed is not None:
            del self.replayed.forward  # it holds the module that holds it, and with it the memory of the recording
        self.replayed = self.shape = None

    def __call__(self, images: Tensor) -> Tensor:
        """Logits of a batch, with a gradient."""
        if self.replayed is None or images.shape != self.shape:
            return self.network(images)
        return self.replayed(images)


def _expect_two_streams() -> None:
    """Keep autograd from warning, as newer versions of torch do, that gradients come from another stream: the one they were recorded on."""
    switch = getattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch", None)
    if switch is not None:
        switch(False)
