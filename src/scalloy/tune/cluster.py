"""Training of one model on many machines, as workers of a Ray cluster.

Ray Train starts the workers, connects them, and restarts them if one dies; Lightning averages their
gradients. Each worker calls the model's own ``train`` with several devices. A folder on a disk that the
machines share holds the model before training, the checkpoints, and the trained model.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from scalloy.data import fingerprint
from scalloy.tune.search import begun, running

if TYPE_CHECKING:
    from scalloy.models._core.base import ScalloyModel

    Model = TypeVar("Model", bound=ScalloyModel)

BEGIN, KEPT, END = "model", "checkpoint", "trained"


def train_on_cluster(
    model: Model,
    *,
    workers: int,
    address: str | None = None,
    folder: str | Path = "scalloy_training",
    resume: bool = False,
    cpus: float = 1,
    gpus: float = 0,
    max_failures: int = 3,
    **train: Any,
) -> Model:
    """Train a model with several workers of a Ray cluster, and return the trained model.

    Parameters
    ----------
    model
        Model to train. Its cells are sent to the workers in memory.
    workers
        Number of processes that train together, on whichever machines have room. ``batch_size`` is per
        worker.
    address
        Address of a running Ray cluster (``"auto"`` on one of its machines). ``None`` uses that in the
        environment variable ``RAY_ADDRESS``, or else this machine alone.
    folder
        Folder on a disk that the machines share. It holds the checkpoints and, in ``trained``, the model.
    resume
        Whether to resume the training in ``folder``, with the same cells and arguments.
    cpus, gpus
        Number of CPUs and of GPUs per worker.
    max_failures
        Number of times to resume from the last checkpoint after a worker has died.
    **train
        Arguments of :meth:`~scalloy.VAE.train`.

    Examples
    --------
    >>> how = {"workers": 4, "gpus": 1, "address": "auto", "folder": "/shared/run"}
    >>> model = sa.train_on_cluster(sa.VAE(adata), **how)  # doctest: +SKIP
    """
    from scalloy._arguments import positive

    ray, torch_trainer = ray_train()
    positive(workers=workers)
    folder = Path(folder).resolve()
    given = {"model": type(model).__name__, "settings": model.init_params_["non_kwargs"]}
    about = {**given, "workers": workers, "train": train, "cells": fingerprint.of_set_up(model.adata_manager)}
    begun(folder, about, resume, "training")
    if not (folder / BEGIN / "model.json").is_file():
        model.save(folder / BEGIN, overwrite=True)
    with running(address):
        cells = ray.put(model.reader.own)
        trainer = torch_trainer(
            _work,
            train_loop_config={"folder": str(folder), "cells": [cells], "train": train, "gpus": gpus},
            scaling_config=ray.train.ScalingConfig(
                num_workers=workers,
                use_gpu=gpus > 0,
                resources_per_worker={"CPU": cpus, **({"GPU": gpus} if gpus else {})},
            ),
            run_config=ray.train.RunConfig(
                name="ray",
                storage_path=str(folder),
                failure_config=ray.train.FailureConfig(max_failures=max_failures),
            ),
        )
        trainer.fit()
    return type(model).load(folder / END, model.reader.own)


def ray_train() -> tuple[Any, Any]:
    """Import Ray and the trainer of Ray Train, or say what to install."""
    try:
        import ray
        import ray.train
        from ray.train.torch import TorchTrainer
    except ImportError as error:
        msg = "`sa.train_on_cluster` runs on Ray Train: pip install 'scalloy[search]'."
        raise ImportError(msg) from error
    return ray, TorchTrainer


def _work(config: dict[str, Any]) -> None:
    """Train as one of the workers; the first one saves the model."""
    import ray
    from ray.train.lightning import RayDDPStrategy, RayLightningEnvironment

    from scalloy.models import load

    folder, cells = Path(config["folder"]), ray.get(config["cells"][0])
    model = load(folder / BEGIN, cells.copy())  # objects that Ray shares are read-only
    model.train(
        accelerator="gpu" if config["gpus"] else "cpu",
        strategy=RayDDPStrategy(),
        plugins=[RayLightningEnvironment()],
        checkpoint_dir=folder / KEPT,
        resume=True,
        **{"enable_progress_bar": False, **config["train"]},
    )
    if ray.train.get_context().get_world_rank() == 0:
        model.save(folder / END, overwrite=True)
    ray.train.report({"world_size": model.trainer.world_size})
