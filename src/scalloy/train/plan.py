"""Training plan that weighs and sums the terms of a module's objective and logs each by its name.

    loss = recon + warm-up * sum_k weight_k * KL_k + sum_g KL_global_g / n_obs + sum_p weight_p * penalty_p

The warm-up runs over a fraction of the steps that will really be taken; validation always uses the full
weights of the terms. The network weights with the lowest ``validation_loss`` are kept in memory and restored
at the end. If the loss is not finite, training stops with an error that names the term, and the last good
network weights are restored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import EarlyStopping
from scvi import REGISTRY_KEYS
from torch import Tensor

from scalloy.kernels.csr import dense
from scalloy.train import distributed
from scalloy.train.cuda_graphs import Recorder, can_record
from scalloy.train.schedules import SCHEDULES, ramp
from scalloy.train.watched import Watched
from scalloy.vae.base import Batch, Terms, VAEModule

State = dict[str, Tensor]
AT_MOST = 32  # tensors that hold the terms of an epoch's steps before they are concatenated


class NonFiniteLoss(FloatingPointError):
    """Error raised when a term of the loss becomes NaN or infinite.

    Attributes
    ----------
    rows, genes
        Rows and columns of the data where it happened; empty if that is not known.
    """

    rows: Sequence[int] = ()
    genes: Sequence[int] = ()


class TermsPlan(pl.LightningModule):
    """Lightning module that trains any :class:`~scalloy.vae.base.VAEModule`.

    Parameters
    ----------
    module
        Module whose ``objective`` is minimised.
    lr
        Highest learning rate of the schedule.
    lr_schedule
        ``"cosine"`` over the whole training, or ``"constant"``.
    weight_decay
        Decoupled weight decay of AdamW. It acts on weight matrices only, not on biases or dispersions, and
        not at all on a query.
    eps
        Term that AdamW adds to its denominator for numerical stability.
    kl_warmup
        Fraction of the training steps over which the weight of the KL terms rises from 0 to its full value.
    n_epochs_kl_warmup
        Length of the warm-up in epochs, as in scvi-tools; takes precedence over ``kl_warmup``.
    weights
        Weights of terms by name: a latent (``{"z": 4.0}``), a penalty, or ``"kl"`` for all other KL terms.
    restore_best
        Whether the trained model gets the weights with the lowest ``validation_loss`` rather than the last.
    graphs
        Whether to run the steps on a GPU as CUDA graphs where possible (:mod:`scalloy.train.cuda_graphs`).
    """

    def __init__(
        self,
        module: VAEModule,
        *,
        lr: float = 4e-3,
        lr_schedule: Literal["cosine", "constant"] = "cosine",
        weight_decay: float = 0.1,
        eps: float = 1e-8,
        kl_warmup: float = 0.1,
        n_epochs_kl_warmup: int | None = None,
        weights: Mapping[str, float] | None = None,
        restore_best: bool = True,
        graphs: bool = True,
    ) -> None:
        super().__init__()
        if lr_schedule not in SCHEDULES:
            msg = f"`lr_schedule={lr_schedule!r}` is not known. Pass one of {list(SCHEDULES)}."
            raise ValueError(msg)
        if not 0 <= kl_warmup <= 1:
            msg = f"`kl_warmup={kl_warmup}` is a fraction of training: pass a number from 0 to 1."
            raise ValueError(msg)
        self.module = module
        self.lr, self.lr_schedule, self.weight_decay, self.eps = lr, lr_schedule, weight_decay, eps
        self.kl_warmup, self.n_epochs_kl_warmup = kl_warmup, n_epochs_kl_warmup
        self.term_weights = dict(weights or {})
        self.restore_best, self.graphs = restore_best, graphs
        self.n_obs_training: int = 1  # this and the next are set by scvi-tools' runner
        self.n_obs_validation: int = 0
        self._rows: list[Tensor] = []
        self._sizes: list[int] = []
        self._names: list[str] = []
        self._best: tuple[float, State] | None = None
        self._good: State = {}
        self._seed = 0  # shared by all devices, if there are several
        self._parts: np.ndarray | None = None
        self._recorder: Recorder | None = None
        self._watched = Watched()
        self._by_graph = False  # is the current step a replayed graph?

    @property
    def several(self) -> bool:
        """True if several devices train the model together."""
        return self._trainer is not None and self._trainer.world_size > 1

    # the objective ------------------------------------------------------------------------------

    def weight(self, name: str) -> float:
        """Return the weight of a term, given its name in the history, without the warm-up."""
        if name.startswith("kl_global_"):
            return 1.0 / self.n_obs_training
        if name.startswith("kl_"):
            return self.term_weights.get(name[3:], self.term_weights.get("kl", 1.0))
        return self.term_weights.get(name.removeprefix("penalty_"), 1.0)

    def _check_weights(self, means: Mapping[str, Tensor]) -> None:
        """Raise an error if a weight was given for a term that does not exist."""
        named = [k for k in means if not k.startswith(("reconstruction", "kl_global_"))]
        known = {k.removeprefix("penalty_").removeprefix("kl_") for k in named}
        if unknown := set(self.term_weights) - known - {"kl"}:
            msg = f"`weights` names {sorted(unknown)}, but the terms are {sorted(known | {'kl'})}."
            raise ValueError(msg)

    def kl_weight(self) -> float:
        """Return the current warm-up factor of the KL terms."""
        epochs = self.trainer.max_epochs or 1
        fraction = self.kl_warmup
        if self.n_epochs_kl_warmup is not None:
            fraction = self.n_epochs_kl_warmup / epochs
        return ramp(self.progress(), fraction)

    def progress(self) -> float:
        """Return the fraction of the training steps that have been taken."""
        epochs = self.trainer.max_epochs or 1
        if epochs < 0:
            return 1.0
        batches, each = self.trainer.num_training_batches, self.trainer.accumulate_grad_batches
        return self.global_step / max(1, epochs * (-(-batches // each) if each > 1 else batches))

    def weigh(self, means: Mapping[str, Tensor], kl_weight: float | Tensor = 1.0) -> Tensor:
        """Return the weighted sum of the means of the terms."""
        loss = torch.zeros((), device=self.device)
        for name, value in means.items():
            weight = self.weight(name)
            if name.startswith("kl_") and "global" not in name:
                if isinstance(kl_weight, Tensor):
                    value = value * kl_weight
                else:
                    weight *= kl_weight
            if weight != 0.0 or self.several:
                loss = loss + value if weight == 1.0 else torch.add(loss, value, alpha=weight)
        return loss

    # steps --------------------------------------------------------------------------------------

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        self._by_graph = self._recorder is not None and self._recorder.takes(batch)
        if self._by_graph and (row := self._replayed(batch)) is not None:
            return row[0]
        self._by_graph = False
        terms = self.module.objective(Batch.of(batch))
        means = terms.means()
        if batch_idx == 0:
            self._check_weights(means)
        loss = self.weigh(means, self.kl_weight())
        self._keep(self._row(means, loss), len(terms.recon))
        if self.several:
            return loss if self._parts is None else loss * float(self._parts[batch_idx])
        if loss.device.type == "cpu" and not torch.isfinite(loss):
            self._stop({k: v.item() for k, v in means.items()}, batch, terms)
        return loss

    def _replayed(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """Take the step as a graph, which leaves the gradients on the parameters."""
        assert self._recorder is not None
        self._warm.fill_(self.kl_weight())
        row = self._recorder(batch)
        if row is not None:
            self._keep(row, len(batch[REGISTRY_KEYS.X_KEY]))
        return row

    def _recorded_step(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Compute the loss and the terms for recording; nothing in here may wait for the device."""
        means = self.module.objective(Batch.of(batch)).means()
        self._check_weights(means)
        loss = self.weigh(means, self._warm)
        return loss, self._row(means, loss)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        if not self._by_graph:
            super().backward(loss, *args, **kwargs)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        if not self._by_graph:
            super().optimizer_zero_grad(epoch, batch_idx, optimizer)

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        terms = self.module.objective(Batch.of(batch))
        means = terms.means()
        self._watched.add(terms.watched)
        self._keep(self._row(means, self.weigh(means)), len(terms.recon))

    def _row(self, means: Mapping[str, Tensor], loss: Tensor) -> Tensor:
        """Stack the loss and the terms of a step into one tensor."""
        self._names = list(means)
        return torch.stack([v.detach() for v in (loss, *means.values())])

    def _keep(self, row: Tensor, n: int) -> None:
        """Keep the terms of this step on the device until the epoch ends.

        They are gathered in few tensors, because many small ones would lie between the buffers of the steps.
        These could then not be reused, and memory would grow by nearly a megabyte per step.
        """
        self._rows.append(row[None])
        self._sizes.append(n)
        if len(self._rows) > AT_MOST:
            self._rows = [torch.cat(self._rows)]

    def _flush(self, mode: str) -> dict[str, float]:
        """Log and return the means over the epoch that has ended, on all devices, and begin a new one."""
        rows = torch.cat(self._rows)
        sizes = torch.tensor(self._sizes, dtype=rows.dtype, device=rows.device)
        sums = torch.cat([sizes @ rows, sizes.sum(0, keepdim=True)])
        *values, n = self.trainer.strategy.reduce(sums, reduce_op="sum").tolist()
        values = [v / n for v in values]
        self._rows, self._sizes = [], []
        loss, means = values[0], dict(zip(self._names, values[1:], strict=True))
        local = [v for k, v in means.items() if k.startswith("kl_") and "global" not in k]
        total = sum(v for k, v in means.items() if k.startswith("kl_global_"))
        elbo = means["reconstruction_loss"] + sum(local) + total / self.n_obs_training
        logged = {f"{k}_{mode}": v for k, v in {**means, "elbo": elbo, "kl_local": sum(local)}.items()}
        logged["train_loss" if mode == "train" else "validation_loss"] = loss
        for name, value in logged.items():
            bar = name.endswith("_loss")
            self.log(name, value, prog_bar=bar, batch_size=int(n), sync_dist=self.several)
        return {**means, "loss": loss}

    def on_train_epoch_start(self) -> None:
        epochs = self.trainer.max_epochs or 1
        end = min(1.0, self.progress() + 1 / epochs) if epochs > 0 else 1.0
        if self.several:
            self._parts = distributed.begin_epoch(self.trainer, self._seed)
        if distributed.once(self.trainer, self.module, lambda m: m.begin_epoch(end, self._training_cells)):
            self._forget_best()
            if self._recorder is not None:
                self._recorder.forget()

    def _forget_best(self) -> None:
        """Reset the best weights and early stopping, because losses of two objectives do not compare."""
        self._best = None
        for callback in self.trainer.early_stopping_callbacks:
            if isinstance(callback, EarlyStopping):
                callback.best_score = callback.best_score.new_tensor(float("inf"))
                callback.wait_count = 0

    def _training_cells(self) -> Iterator[Batch]:
        for tensors in distributed.whole(self.trainer.train_dataloader):
            yield Batch.of(self.trainer.strategy.batch_to_device(tensors))

    def on_train_epoch_end(self) -> None:
        if not self._rows:  # stopped before its first step
            return
        self.log("kl_weight", self.kl_weight(), sync_dist=self.several)
        self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"], sync_dist=self.several)
        means = self._flush("train")
        if means["loss"] != means["loss"] or abs(means["loss"]) == float("inf"):
            self._stop(means)
        self._good = self._snapshot()

    def on_validation_epoch_start(self) -> None:
        self._training = self._rows, self._sizes, self._names
        self._rows, self._sizes = [], []

    def on_validation_epoch_end(self) -> None:
        loss = self._flush("validation")["loss"]
        for name, value in self._watched.end(partial(self.trainer.strategy.reduce, reduce_op="sum")).items():
            self.log(name, value, prog_bar=True, sync_dist=self.several)
        self._rows, self._sizes, self._names = self._training
        if self.restore_best and loss == loss and (self._best is None or loss < self._best[0]):
            self._best = (loss, self._snapshot())

    # weights ------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        if self.several:
            self._seed = self.trainer.strategy.broadcast(torch.initial_seed())
        self._good = self._snapshot()
        if self.graphs and can_record(self.module, self.trainer, self.device):
            self._warm = torch.ones((), device=self.device)
            self._recorder = Recorder(self.module, self._recorded_step)

    def on_train_end(self) -> None:
        if self._recorder is not None:
            self._recorder.clear()
        self._recorder, self._by_graph = None, False
        if self._best is not None:
            self.module.load_state_dict(self._best[1])
        self._best, self._good = None, {}
        self.module.eval()
        distributed.once(self.trainer, self.module, lambda m: m.finish(self._training_cells))

    @property
    def best(self) -> tuple[float | None, State]:
        """Lowest validation loss so far, and the weights that reached it."""
        return self._best or (None, {})

    def restore(self, loss: float | None, best: State | None) -> None:
        """Take over the best weights of a checkpoint, and the module's weights as the last good ones."""
        self._best = None if loss is None or best is None else (loss, best)
        self._good = self._snapshot()

    def _snapshot(self) -> State:
        return {k: v.detach().clone() for k, v in self.module.state_dict().items()}

    def _stop(
        self,
        means: Mapping[str, float],
        batch: Mapping[str, Tensor] | None = None,
        terms: Terms | None = None,
    ) -> None:
        """Restore the last good weights and raise an error with the terms, cells and genes that failed."""
        rows, genes = ([], []) if batch is None or terms is None else self._where(batch, terms)
        broken = [k for k, v in means.items() if k != "loss" and not abs(v) < float("inf")]
        self.module.load_state_dict(self._good)
        which = ", ".join(broken) or "their weighted sum"
        msg = (
            f"The loss is not finite in epoch {self.current_epoch}: {which}. The weights of the last "
            "good epoch were restored. Pass a lower learning rate (`plan_kwargs={'lr': 5e-4}`) or clip "
            "gradients (`gradient_clip_val=10`), and look for extreme counts in single cells."
        )
        error = NonFiniteLoss(msg)
        error.rows, error.genes = rows, genes
        raise error

    @torch.no_grad()
    def _where(self, batch: Mapping[str, Tensor], terms: Terms) -> tuple[list[int], list[int]]:
        """Find the rows and genes where terms are not finite.

        If no cell stands out, it is the one with the largest count; likewise for the genes.
        """
        each = [t for t in (terms.recon, *terms.kl.values(), *terms.penalty.values()) if t.dim() == 1]
        bad = ~torch.stack(each).isfinite().all(0)
        x = dense(batch[REGISTRY_KEYS.X_KEY])
        if bad.all() or not bad.any():
            cell, gene = divmod(int(x.abs().argmax()), x.shape[1])
            found, genes = torch.tensor([cell]), [gene]
        else:
            found = bad.nonzero()[:, 0]
            cells = Batch.of(batch)
            p_x = self.module.decode(cells, self.module.draw(self.module.encode(cells)))["x"]
            entries = self.module.likelihood.log_prob_entries(p_x, x)[found]
            genes = (~entries.isfinite()).any(0).nonzero()[:, 0].tolist()
            genes = genes if 0 < len(genes) < x.shape[1] else [int(x[found].abs().max(0).values.argmax())]
        rows = batch.get(REGISTRY_KEYS.INDICES_KEY)
        return ([] if rows is None else rows.cpu()[found].tolist()), genes

    def configure_optimizers(self) -> Any:
        named = [(k, p) for k, p in self.module.named_parameters() if p.requires_grad]
        decays = [p for k, p in named if k.endswith("weight") and p.dim() > 1]
        others = [p for k, p in named if not (k.endswith("weight") and p.dim() > 1)]
        groups = [
            {"params": decays, "weight_decay": self.weight_decay if self.module.free is None else 0.0},
            {"params": others, "weight_decay": 0.0},
        ]
        fused = named[0][1].device.type in {"cpu", "cuda"}
        if self.trainer.gradient_clip_val and "mixed" in str(self.trainer.precision):
            fused = False  # Lightning cannot clip scaled gradients of a fused optimizer
        return torch.optim.AdamW(groups, lr=self.lr, eps=self.eps, fused=fused)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None
    ) -> None:
        """Take a step and drop the gradients, which would fill the cache during the next forward pass."""
        optimizer.step(closure=optimizer_closure)
        if not self._by_graph:
            optimizer.zero_grad()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        lr = self.lr * SCHEDULES[self.lr_schedule](self.progress())
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = lr


__all__ = ["NonFiniteLoss", "Terms", "TermsPlan"]
