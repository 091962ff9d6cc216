"""Steps of training as CUDA graphs: recorded once for each shape of the batches, and replayed.

A step of a small network is some hundreds of kernels of a few microseconds each, and a GPU waits for the
processor that asks for them one by one. A graph asks for all of them at once. What is recorded is the forward
and the backward pass; the gradients then lie where they did when it was recorded, and the optimizer, clipping
and Lightning's hooks go on as ever. Random numbers are new at each replay, and those of a step that was not
recorded.
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
AT_MOST = 4  # shapes; the batches of an epoch have two
WARM_UP = 3  # steps that are taken before one is recorded, as torch asks for; the first may prepare things
Tensors = Mapping[str, Tensor]


@dataclass
class Recording:
    """A step for batches of one shape."""

    graph: Any
    inputs: list[Tensor]
    row: Tensor
    gradients: list[Tensor | None]


class Recorder:
    """Takes steps as graphs.

    Parameters
    ----------
    module
        Whose parameters get gradients.
    step
        From a batch to the loss, and to what is to be known of the step as one tensor.
    """

    def __init__(self, module: VAEModule, step: Callable[[Tensors], tuple[Tensor, Tensor]]) -> None:
        self.module, self.step = module, step
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.known: dict[Any, Recording] = {}
        self.works = True

    def takes(self, batch: Tensors) -> bool:
        """Whether a step on this batch can be a graph."""
        if not self.works or any(v.layout != torch.strided or not v.is_cuda for v in batch.values()):
            return False
        return self.key(batch) in self.known or len(self.known) < AT_MOST

    @staticmethod
    def key(batch: Tensors) -> Any:
        return tuple((k, v.shape, v.dtype) for k, v in batch.items())

    def forget(self) -> None:
        """The objective is another one from now on."""
        self.known = {}

    def __call__(self, batch: Tensors) -> Tensor | None:
        """What is to be known of the step, after which the gradients are there; ``None`` if it cannot be."""
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
        """Record the step, and leave module and random numbers as they are."""
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
        """Steps as torch asks for, on a stream beside. One that waits for the device is an error here.

        While a graph is recorded such a step would leave the generator of random numbers unusable.
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
        loss, row = self.step(inputs)
        loss.backward()
        return row.detach()

    def clear(self) -> None:
        """No gradients, so that the backward pass makes new ones; no weights kept in low precision."""
        for p in self.parameters:
            p.grad = None
        torch.clear_autocast_cache()


@contextmanager
def waiting_fails() -> Iterator[None]:
    """What waits for the GPU is an error."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def can_record(module: VAEModule, trainer: Any, device: torch.device) -> bool:
    """Whether steps can be graphs: one GPU, one batch to each step, and losses that are not scaled."""
    return (
        device.type == "cuda"
        and module.recordable
        and trainer.world_size == 1
        and trainer.accumulate_grad_batches == 1
        and str(trainer.precision) in {"32-true", "bf16-mixed"}
    )
