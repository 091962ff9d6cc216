"""Training steps as CUDA graphs, recorded once for each batch shape and then replayed.

A step of a small network consists of some hundreds of kernels of a few microseconds each, and the GPU waits
for the CPU to launch them one by one. A graph launches them all at once. It holds the forward and the
backward pass, and each replay writes the gradients to the same memory; the optimizer, gradient clipping and
Lightning's hooks run as usual. Each replay draws new random numbers, the same ones that a step without a
graph would draw.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scalloy.vae.base import VAEModule

logger = logging.getLogger("scalloy")
AT_MOST = 4  # batch shapes that are recorded; the batches of an epoch have two
WARM_UP = 3  # ordinary steps before recording, as torch requires; the first one may initialise things
Tensors = Mapping[str, Tensor]


@dataclass
class Recording:
    """Recorded step for batches of one shape."""

    graph: Any
    inputs: list[Tensor]
    row: Tensor
    gradients: list[Tensor | None]


class Recorder:
    """Records training steps as CUDA graphs and replays them.

    Parameters
    ----------
    module
        Module whose parameters receive the gradients.
    step
        Function of a batch that returns the loss and one tensor with everything to be logged of the step.
    """

    def __init__(self, module: VAEModule, step: Callable[[Tensors], tuple[Tensor, Tensor]]) -> None:
        self.module, self.step = module, step
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.known: dict[Any, Recording] = {}
        self.works = True

    def takes(self, batch: Tensors) -> bool:
        """Return whether a step on this batch can be replayed or recorded."""
        if not self.works or any(v.layout != torch.strided or not v.is_cuda for v in batch.values()):
            return False
        return self.key(batch) in self.known or len(self.known) < AT_MOST

    @staticmethod
    def key(batch: Tensors) -> Any:
        """Return the names, shapes and types of a batch, which identify its recording."""
        return tuple((k, v.shape, v.dtype) for k, v in batch.items())

    def forget(self) -> None:
        """Drop all recordings, because the objective has changed."""
        self.known = {}

    def __call__(self, batch: Tensors) -> Tensor | None:
        """Take a step, leave its gradients on the parameters, and return the tensor to be logged.

        Returns ``None``, without having taken the step, if it cannot be recorded.
        """
        key = self.key(batch)
        if key not in self.known:
            try:
                self.known[key] = self.record(batch)
            except RuntimeError as error:
                logger.info("Steps are not recorded: %s", str(error).splitlines()[0])
                self.works, self.known = False, {}
                return None
        recording = self.known[key]
        torch._foreach_copy_(recording.inputs, list(batch.values()))
        recording.graph.replay()
        for p, gradient in zip(self.parameters, recording.gradients, strict=True):
            p.grad = gradient
        return recording.row.clone()

    def record(self, batch: Tensors) -> Recording:
        """Record the step, leaving the module's buffers and the random state as they were."""
        inputs = {k: v.clone() for k, v in batch.items()}
        buffers = [b for b in self.module.buffers() if b is not None]
        before, state = [b.clone() for b in buffers], torch.cuda.get_rng_state()
        graph, pool = torch.cuda.CUDAGraph(), next((r.graph.pool() for r in self.known.values()), None)
        try:
            self.warm_up(inputs)
            self.clear()
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                row = self.backward(inputs)
        finally:
            for b, value in zip(buffers, before, strict=True):
                b.copy_(value)
            torch.cuda.set_rng_state(state)
        return Recording(graph, list(inputs.values()), row, [p.grad for p in self.parameters])

    def warm_up(self, inputs: Tensors) -> None:
        """Take the ordinary steps that torch requires before recording, on a side stream.

        A step that waits for the device raises an error here. If it did so only during recording, it would
        leave the random number generator unusable.
        """
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for k in range(WARM_UP):
                self.clear()
                with waiting_fails() if k > 0 else nullcontext():
                    self.backward(inputs)
        torch.cuda.current_stream().wait_stream(stream)

    def backward(self, inputs: Tensors) -> Tensor:
        """Run the forward and the backward pass, and return the tensor to be logged."""
        loss, row = self.step(inputs)
        loss.backward()
        return row.detach()

    def clear(self) -> None:
        """Drop gradients, so that the backward pass allocates new ones, and cached low-precision weights."""
        for p in self.parameters:
            p.grad = None
        torch.clear_autocast_cache()


@contextmanager
def waiting_fails() -> Iterator[None]:
    """Raise an error whenever something waits for the GPU."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def can_record(module: VAEModule, trainer: Any, device: torch.device) -> bool:
    """Return whether steps can be recorded: one GPU, one batch per step, and no loss scaling."""
    return (
        device.type == "cuda"
        and module.recordable
        and trainer.world_size == 1
        and trainer.accumulate_grad_batches == 1
        and str(trainer.precision) in {"32-true", "bf16-mixed"}
    )
