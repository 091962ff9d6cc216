"""Which model fits these cells? Many are trained side by side on Ray Tune, and judged on cells none has seen.

A trial is one model with its settings and a seed. All share one split: 80 % of the cells to train, 10 % to
validate (early stopping, best weights, and by asynchronous successive halving, Li et al., MLSys 2020, which
trials go on), 10 % to judge by the importance-weighted marginal likelihood. What a trial has reached is on
disk a second later, so that a search that was killed goes on: finished trials are kept, and those that were
running begin again with the same seed.

Ray keeps its state in pickles, which can run any code when they are read. So a search goes on by itself only
in a folder in which the same user has begun it on this machine (:mod:`scalloy.train.consent`).
"""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scalloy.data import fingerprint
from scalloy.data.splits import split
from scalloy.train import consent
from scalloy.train.settings import PLAN, TRAIN, arguments, divided
from scalloy.train.trials import EARLY, JUDGE, Reports, bar, ray_tune, running, scheduler

if TYPE_CHECKING:
    from anndata import AnnData

    from scalloy.models._base import ScalloyModel

LIKELIHOODS = {"gene_likelihood": ["poisson", "nb", "zip", "zinb"]}
UNJUDGED = "AE"  # has no prior, and so no likelihood of cells
FIGURES = (JUDGE, "se", EARLY, "epochs", "seconds")


@dataclass(frozen=True)
class Search:
    """What a search found.

    Attributes
    ----------
    table
        One row per trial, best first: its settings, ``status`` (``"finished"``, ``"stopped early"``, or
        ``"failed"``), ``marginal_ll`` in nats per cell with its standard error over cells, the negated ELBO
        ``elbo_validation``, ``epochs``, ``seconds``, ``folder`` of the model, ``error``.
    trials
        Settings of each trial, by the column ``trial`` of the table.
    """

    table: pd.DataFrame
    trials: tuple[dict[str, Any], ...]

    @property
    def best(self) -> dict[str, Any]:
        """Settings of the best trial."""
        return dict(self.trials[self.table.iloc[0]["trial"]])

    def summary(self) -> pd.DataFrame:
        """Mean and spread over seeds of each setting that finished, best first."""
        done = self.table[self.table["status"] == "finished"]
        names = dict.fromkeys(k for t in self.trials for k in t if k != "seed")
        by = done.groupby(list(names), sort=False, dropna=False)
        out = by[list(FIGURES)].mean()
        out.insert(1, "sd", by[JUDGE].std())
        out.insert(2, "seeds", by.size())
        return out.sort_values(JUDGE, ascending=False)

    def load(self, rank: int = 0, adata: AnnData | None = None) -> ScalloyModel:
        """The model in this row of the table.

        Parameters
        ----------
        rank
            0 is the best.
        adata
            Cells to attach.
        """
        from scalloy.models import load

        folder = self.table.iloc[rank]["folder"]
        if not isinstance(folder, str):
            status = self.table.iloc[rank]["status"]
            msg = f"Trial {rank} is {status} and kept no model. Pass a smaller `rank`."
            raise ValueError(msg)
        return load(folder, adata)


def search(
    adata: AnnData,
    model: str | Sequence[str] = "VAE",
    space: Mapping[str, Any] | None = None,
    *,
    n_trials: int | None = None,
    seeds: Sequence[int] = (0,),
    max_epochs: int | None = None,
    n_mc_samples: int = 100,
    stop_early: bool = True,
    folder: str | Path = "scalloy_search",
    resume: bool = False,
    allow_pickle: bool = False,
    address: str | None = None,
    cpus: float = 1,
    gpus: float = 0,
    progress: bool = True,
    **setup: Any,
) -> Search:
    """Train models with many settings, and tell which explains best cells that none of them has seen.

    Parameters
    ----------
    adata
        Raw counts.
    model
        Name of a class, such as ``"VAE"`` or ``"GMVAE"``, or several.
    space
        Values of each argument: of the model, of its ``train`` (``"max_epochs"``, ``"batch_size"``) or of its
        plan (``"lr"``, ``"kl_warmup"``). An argument that a model lacks is left out for it. ``None`` compares
        likelihoods. With ``n_trials`` a value may be a sampler of Ray Tune too, such as
        ``ray.tune.loguniform(1e-3, 1e-2)``.
    n_trials
        Draw so many settings at random; ``None`` takes all combinations.
    seeds
        Each setting is trained once with each.
    max_epochs
        Of each trial, at most; ``None`` is the model's default.
    n_mc_samples
        Of the marginal likelihood.
    stop_early
        Whether to end trials that have fallen behind after a third of the epochs.
    folder
        Where trials and their models are kept.
    resume
        Go on with the search in ``folder``, given the same cells and arguments. This reads the pickles in
        which Ray keeps its state, and a pickle can run any code.
    allow_pickle
        Whether to go on in a folder that you have not begun on this machine: only if you trust who made it.
    address
        Of a running Ray cluster (``"auto"`` or ``"ray://host:10001"``), with ``folder`` on a disk that it
        shares; ``None`` is this machine.
    cpus, gpus
        Per trial: as many run at once as the machine or the cluster has.
    progress
        Whether to show a bar.
    **setup
        For ``setup_anndata``, such as ``batch_key``.

    Examples
    --------
    >>> found = sa.search(adata, ["VAE", "GMVAE"], {"gene_likelihood": ["nb", "zinb"], "n_latent": [10, 20]})
    >>> found.table
    >>> model = found.load(adata=adata)
    """
    tune = ray_tune()
    settings = _settings(model, dict(space or LIKELIHOODS), n_trials, seeds)
    cells: dict[str, Any] = {"columns": {}}
    for name in dict.fromkeys(t["model"] for t in settings):  # what is wrong with the cells is said before
        found = _fingerprint(_class(name), adata.copy(), setup)
        cells = {**found, "columns": cells["columns"] | found["columns"]}
    epochs, folder = max_epochs or _default_run(adata.n_obs)[0], Path(folder).resolve()
    about = {
        "trials": settings,
        "setup": setup,
        "epochs": epochs,
        "n_mc_samples": n_mc_samples,
        "cells": cells,
    }
    known = begun(folder, about, resume) and tune.Tuner.can_restore(str(folder))
    if known and not allow_pickle:
        consent.check(folder)
    elif not known:
        consent.remember(folder)
    trial = tune.with_parameters(
        _trial, adata=adata, setup=setup, epochs=epochs, n_mc_samples=n_mc_samples, settings=settings
    )
    trial = tune.with_resources(trial, {"cpu": cpus, "gpu": gpus})
    with running(address):
        if known:
            tuner = tune.Tuner.restore(str(folder), trial, resume_unfinished=True, restart_errored=True)
            found = tuner.get_results()
            if found.num_terminated == len(settings) and not found.num_errors:
                return _collected(found, settings)
        else:
            tuner = tune.Tuner(
                trial,
                param_space={"trial": tune.grid_search(list(range(len(settings))))},
                tune_config=tune.TuneConfig(
                    scheduler=scheduler(epochs) if stop_early else None,
                    reuse_actors=True,
                    trial_name_creator=lambda t: f"trial_{t.config['trial']}",
                    trial_dirname_creator=lambda t: f"trial_{t.config['trial']}",
                ),
                run_config=tune.RunConfig(
                    name=folder.name,
                    storage_path=str(folder.parent),
                    verbose=0,
                    callbacks=[bar(tune)(len(settings))] if progress else [],
                ),
            )
        return _collected(tuner.fit(), settings)


def begun(folder: Path, about: dict[str, Any], resume: bool, kind: str = "search") -> bool:
    """Whether the folder holds this very search or training; if there is none yet, write what it is."""
    text, file = json.dumps(about, default=_plain, indent=1), folder / f"{kind}.json"
    if not folder.is_dir() or not any(folder.iterdir()):
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return False
    if not resume:
        msg = f"`folder={str(folder)!r}` is in use. Pass `resume=True` to go on there, or another folder."
        raise FileExistsError(msg)
    if differ := _differ(file, json.loads(text)):
        msg = (
            f"`folder={str(folder)!r}` holds another {kind}: see its {file.name}, where {differ}. Pass the "
            "same cells and arguments, or another folder."
        )
        raise ValueError(msg)
    return True


def _differ(file: Path, about: dict[str, Any]) -> str:
    """Which parts of what a folder holds are others; of the cells also in what they differ."""
    try:
        kept = json.loads(file.read_text())
    except (OSError, ValueError):
        return "nothing can be read"
    differ = [k for k in about if kept.get(k) != about[k]]
    known, now = kept.get("cells"), about["cells"]
    if "cells" in differ and isinstance(known, dict):
        parts = ", ".join(k for k in now if known.get(k) != now[k])
        differ = [f"cells ({parts})" if k == "cells" else k for k in differ]
    return f"{', '.join(differ)} differ" if differ else ""


def _fingerprint(cls: type[ScalloyModel], cells: AnnData, setup: dict[str, Any]) -> dict[str, Any]:
    """Fingerprint of the cells as they are set up for a model."""
    cls.setup_anndata(cells, **setup)
    return fingerprint.of_set_up(cls._get_most_recent_anndata_manager(cells, required=True))


def _plain(value: Any) -> Any:
    """Of numpy."""
    return value.item() if hasattr(value, "item") else str(value)


def _settings(
    model: str | Sequence[str], space: dict[str, Any], n_trials: int | None, seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """Every trial: the class, its arguments, the seed. Each is there once."""
    from scalloy.models import MODELS, _options

    judged = {k: v for k, v in MODELS.items() if k != UNJUDGED}
    models = [model] if isinstance(model, str) else list(model)
    takes = {_options.one_of("model", m, judged): arguments(judged[m]) | TRAIN | PLAN for m in models}
    for name in space:
        _options.one_of("space", name, sorted(set().union(*takes.values())))
    space = {k: list(v) if isinstance(v, (list, tuple, range, np.ndarray)) else v for k, v in space.items()}
    if n_trials is None:
        if odd := [k for k, v in space.items() if not isinstance(v, list)]:
            msg = f"`space` has no list of values for {', '.join(odd)}. Pass lists, or `n_trials` to draw."
            raise ValueError(msg)
        rows = itertools.product(models, *space.values())
        drawn = [dict(zip(("model", *space), row, strict=True)) for row in rows]
    else:
        _options.positive(n_trials=n_trials)
        rng = np.random.RandomState(0)  # Ray's samplers take these

        def one(values: Any) -> Any:
            if not isinstance(values, list):
                return values.sample(random_state=rng)
            return values[rng.randint(len(values))]

        drawn = [{"model": one(models), **{k: one(v) for k, v in space.items()}} for _ in range(n_trials)]
    trials = [
        {"model": d["model"], **{k: d[k] for k in space if k in takes[d["model"]]}, "seed": int(seed)}
        for d in drawn
        for seed in seeds
    ]
    return [t for i, t in enumerate(trials) if t not in trials[:i]]


def _class(name: str) -> type[ScalloyModel]:
    from scalloy.models import MODELS

    return MODELS[name]


def _default_run(n_obs: int) -> tuple[int, int]:
    """Epochs and the size of batches, which go together, whatever the memory of a trial's device."""
    from scalloy.models._training import default_batch_size, default_epochs

    size = default_batch_size(n_obs)
    return default_epochs(n_obs, size), size


def _trial(
    config: dict[str, int],
    *,
    adata: AnnData,
    setup: dict[str, Any],
    epochs: int,
    n_mc_samples: int,
    settings: list[dict[str, Any]],
) -> None:
    """One model, within a process of Ray's."""
    from ray import tune

    given, begin = dict(settings[config["trial"]]), time.perf_counter()
    cls = _class(given.pop("model"))
    given, train, plan = divided(given)
    cells = adata.copy()  # what Ray shares is read-only
    cls.setup_anndata(cells, **setup)
    model = cls(cells, **given)
    parts = split(cells.n_obs, 0.8, 0.1)
    model.train(
        **{"max_epochs": epochs, "batch_size": _default_run(adata.n_obs)[1], **train},
        plan_kwargs=plan,
        datasplitter_kwargs={"external_indexing": list(parts)},
        callbacks=[Reports()],
        enable_progress_bar=False,
    )
    mean, se = model.get_marginal_ll(indices=parts[2], n_mc_samples=n_mc_samples, return_se=True)
    validation = model.history[EARLY].iloc[:, 0].astype(float)
    figures = {JUDGE: mean, "se": se, EARLY: validation.min(), "epochs": len(validation)}
    figures["seconds"] = time.perf_counter() - begin
    with tempfile.TemporaryDirectory() as kept:
        model.save(kept, overwrite=True)
        checkpoint = tune.Checkpoint.from_directory(kept)
        tune.report({**figures, "epoch": len(validation) + 1}, checkpoint=checkpoint)


def _collected(results: Any, settings: list[dict[str, Any]]) -> Search:
    """The table from what Ray kept of each trial."""
    rows = []
    for i in range(len(results)):
        result = results[i]
        found = result.metrics or {}
        trial = (result.config or {"trial": i})["trial"]  # a trial that never began has no configuration
        status = "finished" if JUDGE in found else "stopped early"
        folder = result.checkpoint.path if result.checkpoint is not None else None
        rows.append(
            {
                "trial": trial,
                **settings[trial],
                "status": "failed" if result.error else status,
                **{k: found.get(k, np.nan) for k in FIGURES},
                "folder": folder,
                "error": str(result.error).strip().splitlines()[-1] if result.error else "",
            }
        )
    if all(row["status"] == "failed" for row in rows):
        msg = f"All {len(rows)} trials failed, the first with: {rows[0]['error']}"
        raise RuntimeError(msg)
    names = list(dict.fromkeys(k for s in settings for k in s))
    columns = ["trial", *names, "status", *FIGURES, "folder", "error"]
    table = pd.DataFrame(rows, columns=columns).sort_values([JUDGE, EARLY], ascending=[False, True])
    return Search(table.reset_index(drop=True), tuple(settings))
