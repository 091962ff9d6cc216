"""What a model of two modalities tells: codes of each, one from the other, and how they go together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from scalloy import _keys
from scalloy._seeds import seeded
from scalloy.blocks import gibbs
from scalloy.blocks.coupling import SecondOrder
from scalloy.blocks.expected import mean_log1p
from scalloy.blocks.joints import BOTH, Coupled
from scalloy.blocks.likelihoods import Likelihood
from scalloy.blocks.sparse import log_normalise, map_values
from scalloy.models import _options
from scalloy.models._traverse import span
from scalloy.vae.base import Batch
from scalloy.vae.poisevae import POISEVAE

Frames = tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]
LIKELIHOODS = ("likelihood", "likelihood2")
X = ("x", "x2")


class PairGetters:
    """See the head of this file."""

    module: POISEVAE
    registry: dict[str, Any]
    name: str
    init_params_: dict[str, Any]
    get_var_names: Callable[[], Any]
    _read: Callable[..., Iterator[dict[str, torch.Tensor]]]
    _names: Callable[..., pd.Index]
    _batch_codes: Callable[..., list[int | None]]
    _per_cell: Callable[..., np.ndarray]
    _or_held_out: Callable[[Any, Any], Any]
    seed: int

    @property
    def modalities(self) -> tuple[str, str]:
        """Names of the two modalities."""
        first, second = self.registry["setup_args"]["modalities"]
        return first, second

    def _side(self, argument: str, name: str) -> int:
        return self.modalities.index(_options.one_of(argument, name, self.modalities))

    def get_variables(self, modality: str) -> list[str]:
        """Names of the genes, or of the proteins."""
        state = self.registry["field_registries"][_keys.SECOND_KEY]["state_registry"]
        names = (self.get_var_names(), state["column_names"])[self._side("modality", modality)]
        return [str(name) for name in names]

    # codes --------------------------------------------------------------------------------------

    @torch.inference_mode()
    def get_latent_representation(
        self,
        adata: Any = None,
        indices: Sequence[int] | None = None,
        give_mean: bool = True,
        batch_size: int | None = None,
        return_dist: bool = False,
        which: str = "joint",
        seed: int | None = None,
    ) -> Any:
        """Code of each cell, by all that was measured of it.

        Parameters
        ----------
        adata
            New cells, AnnData or MuData, which may lack a modality; ``None`` is the model's own.
        indices
            Rows, or a mask.
        give_mean
            Whether to return the posterior mean and not a sample.
        batch_size
            Cells at once.
        return_dist
            Whether to return mean and variance.
        which
            ``"joint"``: the codes of both modalities side by side (of a shared code, that one); or the name
            of a modality.
        seed
            Of a sample; ``None`` is that of the model.
        """
        which = _options.one_of("which", which, ("joint", *self.modalities, *BOTH))
        latent = dict(zip(self.modalities, BOTH, strict=True)).get(which, which)
        out: list[tuple[torch.Tensor, ...]] = []
        with seeded(seed, self.seed):
            for tensors in self._read(adata, indices, batch_size):
                q = self.module.encode(Batch.of(tensors))
                if give_mean or return_dist:
                    joint = self.module.joint
                    known = joint.code(q) if latent == "joint" else joint.codes(q)[latent]
                    out.append(known if return_dist else known[:1])
                else:
                    drawn = self.module.draw(q)
                    out.append((self.module.joint.together(drawn) if latent == "joint" else drawn[latent],))
        arrays = tuple(torch.cat(part).cpu().numpy() for part in zip(*out, strict=True))
        return arrays if return_dist else arrays[0]

    def get_reconstruction_error(
        self,
        adata: Any = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
        return_mean: bool = True,
        seed: int | None = None,
    ) -> dict[str, float | np.ndarray]:
        """``-log p(x | latents)`` of both modalities and of each, in nats; lower is better."""

        def recon(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
            batch = Batch.of(tensors)
            p = self.module.decode(batch, self.module.draw(self.module.encode(batch)))
            return -torch.stack(self.module.log_likelihoods(batch, p), -1)

        rows = self._or_held_out(adata, indices)
        each = self._per_cell(adata, rows, batch_size, recon, seed).astype(np.float64)
        values = {"reconstruction_loss": each.sum(-1), **dict(zip(self.modalities, each.T, strict=True))}
        return {k: float(v.mean()) for k, v in values.items()} if return_mean else values

    # from one to the other ----------------------------------------------------------------------

    @torch.inference_mode()
    def predict(
        self,
        modality: str,
        from_: str | None = None,
        adata: Any = None,
        indices: Sequence[int] | None = None,
        *,
        scale: str = "counts",
        n_samples: int = 50,
        interval: float | None = None,
        transform_batch: Any = None,
        batch_size: int | None = None,
        seed: int = 0,
    ) -> pd.DataFrame | Frames:
        """What a modality is expected to be, by another one.

        Parameters
        ----------
        modality
            To predict, such as ``"prot"``.
        from_
            The modality that is looked at; ``None`` is all that was measured of each cell (which completes
            cells that lack one, and takes the noise from the others).
        adata, indices, batch_size
            As in :meth:`get_latent_representation`.
        scale
            ``"counts"``, with the usual library size of genes where these are not looked at (other data as
            they are); or ``"log1p"``, the expected logarithm of the counts of the second modality, and of
            those of the first one scaled to 10,000 per cell.
        n_samples
            Samples of the codes over which the mean is taken.
        interval
            Probability with which the counts lie between two further frames, such as 0.9.
        transform_batch
            Decode as if the cells came from this batch.
        seed
            Of the samples.

        Returns
        -------
        Mean for each cell and variable; with ``interval``, ``(mean, low, high)``: quantiles of the samples on
        the same scale, for which ``n_samples`` should be 200 or more.
        """
        side, seen = self._side("modality", modality), None if from_ is None else self._side("from_", from_)
        self._check_scale(scale, side)
        _options.whole(n_samples=n_samples)
        if interval is not None and not 0 < interval < 1:
            msg = f"`interval={interval}` is a probability: pass a number between 0 and 1."
            raise ValueError(msg)
        code, parts = self._batch_codes(transform_batch)[0], []
        with seeded(seed):
            for tensors in self._read(adata, indices, batch_size, decodes=True):
                batch = only(Batch.of(tensors), seen)
                batch = batch if code is None else replace(batch, b=torch.full_like(batch.b, code))
                parts.append(self._predicted(batch, side, scale, n_samples, interval))
        names, columns = self._names(adata, indices), self.get_variables(modality)
        frames = [
            pd.DataFrame(torch.cat(v).cpu().numpy(), index=names, columns=columns)
            for v in zip(*parts, strict=True)
        ]
        return frames[0] if interval is None else tuple(frames)  # type: ignore[return-value]

    def _check_scale(self, scale: str, side: int) -> None:
        """A scale that the values of a modality have."""
        likelihood = getattr(self.module, LIKELIHOODS[side])
        if _options.one_of("scale", scale, ("counts", "log1p")) == "log1p" and not likelihood.has_log_scale:
            argument = ("gene_likelihood", "protein_likelihood")[side]
            given = self.init_params_["non_kwargs"][argument]
            msg = (
                f"`scale='log1p'` has no meaning for {self.modalities[side]!r}, which is no counts by "
                f"`{argument}={given!r}`. Pass `scale='counts'` for the values as they are."
            )
            raise ValueError(msg)

    def _predicted(
        self, batch: Batch, side: int, scale: str, n_samples: int, interval: float | None
    ) -> tuple[torch.Tensor, ...]:
        """Mean, and the bounds of the interval, of some cells."""
        q, total, drawn = self.module.encode(batch), torch.zeros(()), []
        likelihood, log_ell = getattr(self.module, LIKELIHOODS[side]), self.module.log_ell(batch)
        for _ in range(n_samples):
            p = self.module.decode_one(X[side], batch, self.module.draw(q))
            if interval is not None:
                x, logs = p.sample(), scale == "log1p"
                drawn.append(_logged(likelihood, x, side) if logs else likelihood.unlogged(x, log_ell))
            if scale == "counts":
                total = total + likelihood.expected(p, log_ell)
            else:
                total = total + (likelihood.mean_observed(p) if side == 0 else mean_log1p(p))
        mean = total / n_samples
        if interval is None:
            return (mean,)
        values = torch.stack(drawn)
        return mean, *(values.quantile(k, 0) for k in (0.5 - interval / 2, 0.5 + interval / 2))

    # the prior ----------------------------------------------------------------------------------

    def _coupled(self) -> Coupled:
        if not isinstance(self.module.joint, Coupled):
            msg = "The modalities share one code, which nothing couples. Train with `joint='poise'`."
            raise ValueError(msg)
        return self.module.joint

    @torch.inference_mode()
    def get_coupling(self) -> pd.DataFrame:
        """How the codes go together: the matrix of the prior, powers of the first code x those of the second.

        An entry is the weight of the product of the two, such as ``rna_0`` and ``prot_3^2``, in the logarithm
        of the prior density.
        """
        g = self._coupled().coupling().cpu().numpy()
        names = [
            [f"{name}_{i}{power}" for power in ("", "^2") for i in range(n // 2)]
            for name, n in zip(self.modalities, g.shape, strict=True)
        ]
        return pd.DataFrame(g, index=names[0], columns=names[1])

    @torch.inference_mode()
    def get_log_partition(
        self, n_chains: int = 4096, n_steps: int = 400, seed: int = 0
    ) -> tuple[float, float]:
        """``log Z`` of the prior and its standard error: how far the ELBO of all cells may be off.

        By annealed importance sampling with ``n_chains`` chains in ``n_steps`` steps; training and evaluation
        use 1,024 and 100. Of ``joint="gaussian"`` it is exact.
        """
        _options.whole(n_chains=n_chains, n_steps=n_steps)
        coupling = self._coupled().coupling
        if not isinstance(coupling, SecondOrder):
            return float(coupling.log_partition()), 0.0
        generator = torch.Generator(self.module.device).manual_seed(seed)
        value, se = gibbs.log_partition(coupling(), n_chains=n_chains, n_steps=n_steps, generator=generator)
        return float(value), float(se)

    @torch.inference_mode()
    def get_mixing(self, n_sweeps: int = 200, n_chains: int = 64, seed: int = 0) -> pd.DataFrame:
        """Whether Gibbs chains move within all of the prior: R-hat and correlation of sweeps of each latent.

        R-hat (Gelman & Rubin 1992) near 1 says that chains from different beginnings agree. Above 1.1 the
        prior has modes between which they hardly move, as where there are distinct types of cells; that is
        why the log-partition and :meth:`generate` anneal.
        """
        _options.whole(n_sweeps=n_sweeps, n_chains=n_chains)
        g = self._coupled().coupling()
        generator = torch.Generator(g.device).manual_seed(seed)
        state, kept = gibbs.start(g, n_chains, generator), []
        for _ in range(n_sweeps):
            state = gibbs.sweep(state, g, generator=generator)
            kept.append(torch.cat(state, -1))
        values = torch.stack(kept)[n_sweeps // 2 :].cpu().numpy()
        within, between = values.var(0, ddof=1).mean(0), values.mean(0).var(0, ddof=1)
        centred = values - values.mean((0, 1))
        lag = (centred[1:] * centred[:-1]).mean((0, 1)) / centred.var((0, 1))
        names = [
            f"{name}_{i}" for name, z in zip(self.modalities, state, strict=True) for i in range(z.shape[1])
        ]
        r_hat = np.sqrt(1 - 1 / len(values) + between / within)
        return pd.DataFrame({"r_hat": r_hat, "autocorrelation": lag}, index=names)

    @torch.inference_mode()
    def generate(self, n: int = 100, *, n_steps: int = 200, seed: int = 0) -> AnnData:
        """Cells that were never measured, both modalities of each.

        Codes are drawn from the prior; batch, covariates and library size are those of cells of the model.

        Parameters
        ----------
        n
            Number of cells.
        n_steps
            In which Gibbs chains are led from two standard normals to the prior; see
            :func:`scalloy.blocks.gibbs.sample`.
        seed
            Of the samples.

        Returns
        -------
        AnnData with counts of genes in ``.X`` and of the second modality in ``.obsm`` under its name (or
        other values, as its likelihood draws them); codes are in ``.obsm["X_<model>"]``.
        """
        _options.whole(n=n, n_steps=n_steps)
        n_obs = len(self._names(None, None))
        rows, parts = np.random.default_rng(seed).integers(n_obs, size=n), []
        with seeded(seed):
            for tensors in self._read(None, rows, None, decodes=True):
                batch = Batch.of(tensors)
                drawn = self.module.joint.prior(len(batch.x), n_steps)
                latents = {k: v.to(batch.x.device) for k, v in drawn.items()}
                p = self.module.decode(batch, latents)
                parts.append((p["x"].sample(), p["x2"].sample(), self.module.joint.together(latents)))
        x, x2, code = (torch.cat(v).cpu().numpy() for v in zip(*parts, strict=True))
        first, second = self.modalities
        out = AnnData(x, var=pd.DataFrame(index=self.get_variables(first)))
        out.obs_names = [f"generated_{i}" for i in range(n)]
        out.obsm[second] = pd.DataFrame(x2, index=out.obs_names, columns=self.get_variables(second))
        out.obsm[_keys.latent(self.name)] = code
        return out

    @torch.inference_mode()
    def get_cross_traversal(
        self,
        latent: int,
        of: str,
        to: str | None = None,
        values: Sequence[float] | None = None,
        *,
        n_steps: int = 7,
        n_samples: int = 200,
        seed: int = 0,
    ) -> pd.DataFrame:
        """What happens in one modality as a latent of the other one changes, by the prior that couples them.

        Parameters
        ----------
        latent
            Its number, from 0.
        of, to
            Modality of the latent, and the one that is looked at; ``None`` is the other one.
        values
            That the latent takes; ``None`` is ``n_steps`` from low to high among the cells.
        n_samples
            Cells to begin from; the other latents of each are as they are.
        seed
            Of these cells and of the samples.

        Returns
        -------
        A row for each value, a column for each variable: ``log1p`` of counts (of genes, scaled to 10,000),
        and other data as they are.
        """
        _options.whole(n_steps=n_steps, n_samples=n_samples)
        a = self._side("of", of)
        b = 1 - a if to is None else self._side("to", to)
        coupled, codes = self._coupled(), self.get_latent_representation(which=of)
        _options.check_latent(latent, codes.shape[1])
        at = np.linspace(*span(codes[:, latent]), n_steps) if values is None else np.asarray(values, float)
        rows = np.random.default_rng(seed).choice(len(codes), min(n_samples, len(codes)), replace=False)
        out = []
        for value in at:
            total = []
            with seeded(seed):  # the same draws for each
                for tensors in self._read(None, rows, None, decodes=True):
                    batch = Batch.of(tensors)
                    z = self.module.encode(batch)[BOTH[a]].mean.clone()
                    z[:, latent] = float(value)
                    p = self.module.decode_one(X[b], batch, coupled.from_one(z, a))
                    likelihood = getattr(self.module, LIKELIHOODS[b])
                    logged = b == 1 and likelihood.has_log_scale
                    total.append(p.mean.log1p() if logged else likelihood.predicted(p))
                out.append(torch.cat(total).mean(0).cpu().numpy())
        return pd.DataFrame(np.stack(out), index=at, columns=self.get_variables(self.modalities[b]))


def _logged(likelihood: Likelihood, x: torch.Tensor, side: int) -> torch.Tensor:
    """Samples as ``log1p``, which those of some likelihoods are already."""
    logged = log_normalise if side == 0 else torch.log1p
    return logged(x) if likelihood.draws_counts else x


def only(batch: Batch, side: int | None) -> Batch:
    """Cells of which only one modality was measured."""
    assert batch.x2 is not None
    if side is None:
        return batch
    if side == 0:
        return replace(batch, x2=torch.full_like(batch.x2, torch.nan))
    return replace(batch, x=map_values(batch.x, torch.zeros_like))
