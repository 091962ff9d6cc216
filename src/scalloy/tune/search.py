"""Search for the model and the settings that best explain unseen cells, with trials side by side on Ray Tune.

A trial is one model with its settings and a seed. All trials share one split of the cells: 80 % for training,
10 % for validation and 10 % for judging. Validation decides about early stopping, the best weights and, by
asynchronous successive halving (Li et al., MLSys 2020), which trials continue. Trials are judged by their
importance-weighted marginal likelihood. Progress is saved within a second, so that a search that was killed
can be resumed: finished trials are kept, and those that were running begin again with the same seed.

Ray keeps its state in pickles, which can run any code when they are read. A search is therefore resumed
without asking only in a folder in which the same user began it on the same machine
(:mod:`scalloy.tune.consent`).
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

from scalloy._arguments import one_of, positive
from scalloy.data import fingerprint
from scalloy.data.split import split
from scalloy.tune import consent
from scalloy.tune.settings import PLAN, TRAIN, arguments, divided
from scalloy.tune.trials import EARLY, END, JUDGE, PROGRESS, Reports, bar, ray_tune, running, scheduler

if TYPE_CHECKING:
    from anndata import AnnData

    from scalloy.models._core.base import ScalloyModel

LIKELIHOODS = {"gene_likelihood": ["poisson", "nb", "zip", "zinb"]}
UNJUDGED = "AE"  # has no prior, and therefore no marginal likelihood
FIGURES = (JUDGE, "se", EARLY, "epochs", "seconds")


@dataclass(frozen=True)
class Search:
    """Result of a search.

    Attributes
    ----------
    table
        One row per trial, best first: its settings; ``status`` (``"finished"``, ``"stopped early"``, or
        ``"failed"``); ``marginal_ll`` in nats per cell, with its standard error ``se`` over cells; the
        negated ELBO ``elbo_validation``; ``epochs``; ``seconds``; ``folder`` of the model; and ``error``.
    trials
        Settings of each trial, indexed by the column ``trial`` of the table.
    """

    table: pd.DataFrame
    trials: tuple[dict[str, Any], ...]

    @property
    def best(self) -> dict[str, Any]:
        """Settings of the best trial."""
        return dict(self.trials[self.table.iloc[0]["trial"]])

    def summary(self) -> pd.DataFrame:
        """Summarise the finished trials of each setting by their mean and spread over seeds, best first."""
        done = self.table[self.table["status"] == "finished"]
        names = dict.fromkeys(k for t in self.trials for k in t if k != "seed")
        by = done.groupby(list(names), sort=False, dropna=False)
        out = by[list(FIGURES)].mean()
        out.insert(1, "sd", by[JUDGE].std())
        out.insert(2, "seeds", by.size())
        return out.sort_values(JUDGE, ascending=False)

    def load(self, rank: int = 0, adata: AnnData | None = None) -> ScalloyModel:
        """Load the model in a row of the table.

        Parameters
        ----------
        rank
            Number of the row; 0 is the best trial.
        adata
            Cells to attach to the model.
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
    """Train models with many settings and find the one that best explains cells that none of them has seen.

    Parameters
    ----------
    adata
        Cells with raw counts.
    model
        Name of a model class, such as ``"VAE"`` or ``"GMVAE"``, or a list of names.
    space
        Values to try for each argument: of the model, of its ``train`` (``"max_epochs"``, ``"batch_size"``)
        or of its plan (``"lr"``, ``"kl_warmup"``). A model that lacks an argument is trained without it.
        ``None`` compares likelihoods. With ``n_trials``, a sampler of Ray Tune may stand for the values,
        such as ``ray.tune.loguniform(1e-3, 1e-2)``.
    n_trials
        Number of settings to draw at random; ``None`` tries all combinations.
    seeds
        Random seeds; each setting is trained once with each of them.
    max_epochs
        Maximum number of epochs of each trial, unless ``space`` has ``"max_epochs"``; ``None`` is the default
        number of the model for this many cells.
    n_mc_samples
        Number of importance samples for the marginal likelihood.
    stop_early
        Whether to end trials that have fallen behind after a third of their epochs.
    folder
        Folder in which the trials and their models are kept.
    resume
        Whether to resume the search in ``folder``, with the same cells and arguments. This reads the pickles
        in which Ray keeps its state, and a pickle can run any code.
    allow_pickle
        Whether to resume even in a folder that you have not begun on this machine. Do so only if you trust
        whoever made it.
    address
        Address of a running Ray cluster (``"auto"`` or ``"ray://host:10001"``); ``folder`` must then be on a
        disk that the cluster shares. ``None`` uses the address in the environment variable ``RAY_ADDRESS``,
        or else this machine alone.
    cpus, gpus
        Number of CPUs and of GPUs per trial. As many trials run at once as there is room for.
    progress
        Whether to show a progress bar.
    **setup
        Arguments of ``setup_anndata``, such as ``batch_key``.

    Examples
    --------
    >>> space = {"gene_likelihood": ["nb", "zinb"], "n_latent": [10, 20]}
    >>> found = sa.search(adata, ["VAE", "GMVAE"], space)  # doctest: +SKIP
    >>> found.table  # doctest: +SKIP
    >>> model = found.load(adata=adata)  # doctest: +SKIP
    """
    tune = ray_tune()
    settings = _settings(model, dict(space or LIKELIHOODS), n_trials, seeds)
    cells: dict[str, Any] = {"columns": {}}
    models = list(dict.fromkeys(t["model"] for t in settings))
    for name in models:  # report faulty cells before any training
        found = _fingerprint(_class(name), adata.copy(), setup)
        cells = {**found, "columns": cells["columns"] | found["columns"]}
    epochs = {m: max_epochs or _default_run(_class(m), adata.n_obs)[0] for m in models}
    folder, alike = Path(folder).resolve(), set(epochs.values())
    about = {
        "trials": settings,
        "setup": setup,
        "epochs": alike.pop() if len(alike) == 1 else epochs,
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
                    scheduler=scheduler() if stop_early else None,
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
    """Return whether a folder holds this very search or training; describe it in a folder that is empty."""
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
    """Name the parts of a search that differ from those in its folder; empty if none does."""
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
    """Return the fingerprint of the cells once they are set up for a model."""
    cls.setup_anndata(cells, **setup)
    return fingerprint.of_set_up(cls._get_most_recent_anndata_manager(cells, required=True))


def _plain(value: Any) -> Any:
    """Convert a number of numpy for JSON, and anything else to text."""
    return value.item() if hasattr(value, "item") else str(value)


def _settings(
    model: str | Sequence[str], space: dict[str, Any], n_trials: int | None, seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """List the distinct trials, each with its class, arguments and seed."""
    from scalloy.models import MODELS

    judged = {k: v for k, v in MODELS.items() if k != UNJUDGED}
    models = [model] if isinstance(model, str) else list(model)
    takes = {one_of("model", m, judged): arguments(judged[m]) | TRAIN | PLAN for m in models}
    for name in space:
        one_of("space", name, sorted(set().union(*takes.values())))
    space = {k: list(v) if isinstance(v, (list, tuple, range, np.ndarray)) else v for k, v in space.items()}
    if n_trials is None:
        if odd := [k for k, v in space.items() if not isinstance(v, list)]:
            msg = f"`space` has no list of values for {', '.join(odd)}. Pass lists, or `n_trials` to draw."
            raise ValueError(msg)
        rows = itertools.product(models, *space.values())
        drawn = [dict(zip(("model", *space), row, strict=True)) for row in rows]
    else:
        positive(n_trials=n_trials)
        rng = np.random.RandomState(0)  # the kind of generator that Ray's samplers take

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
    """Return the model class of this name."""
    from scalloy.models import MODELS

    return MODELS[name]


def _default_run(cls: type[ScalloyModel], n_obs: int) -> tuple[int, int]:
    """Return default epochs and batch size of a model, chosen together and alike on every device."""
    from scalloy.models._core.training import default_batch_size, default_epochs

    size = default_batch_size(n_obs)
    return default_epochs(n_obs, size, cls._default_steps), size


def _trial(
    config: dict[str, int],
    *,
    adata: AnnData,
    setup: dict[str, Any],
    epochs: dict[str, int],
    n_mc_samples: int,
    settings: list[dict[str, Any]],
) -> None:
    """Train and judge one model, within a process of Ray; ``epochs`` has those of each class of models."""
    from ray import tune

    given, begin = dict(settings[config["trial"]]), time.perf_counter()
    cls, usual = _class(name := given.pop("model")), epochs[name]
    given, train, plan = divided(given)
    train = {**train, "max_epochs": train.get("max_epochs") or usual}
    cells = adata.copy()  # objects that Ray shares are read-only
    cls.setup_anndata(cells, **setup)
    model = cls(cells, **given)
    parts = split(cells.n_obs, 0.8, 0.1)
    model.train(
        **{"batch_size": _default_run(cls, adata.n_obs)[1], **train},
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
        done = {"epoch": len(validation) + 1, PROGRESS: END + 1}
        tune.report({**figures, **done}, checkpoint=checkpoint)


def _shown(value: Any) -> Any:
    """Return a setting as the table has it: lists and dictionaries, which cannot be grouped by, as text."""
    return str(value) if isinstance(value, list | tuple | Mapping) else value


def _collected(results: Any, settings: list[dict[str, Any]]) -> Search:
    """Collect what Ray kept of each trial into the result."""
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
                **{k: _shown(v) for k, v in settings[trial].items()},
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
