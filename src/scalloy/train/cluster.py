"""Training of one model by many machines, as workers of a Ray cluster.

Ray Train starts the workers, tells them of each other, and starts them again if one dies; Lightning averages
their gradients. What a worker does is the model's own ``train`` with several devices, and what it needs is in
a folder on a disk that the machines share: the model as it is, checkpoints, and the model as it becomes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from scalloy.data import fingerprint
from scalloy.train.search import begun, running

if TYPE_CHECKING:
    from scalloy.models._base import ScalloyModel

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
    """Train a model by several workers of a Ray cluster; the trained one is returned.

    Parameters
    ----------
    model
        To train, with its cells, which travel to the workers in memory.
    workers
        Processes that train together, on whatever machines have room. ``batch_size`` is per worker.
    address
        Of a running Ray cluster (``"auto"`` on one of its machines); ``None`` is this machine.
    folder
        On a disk that the machines share: checkpoints, and the model in ``trained``.
    resume
        Go on with the training in ``folder``, given the same cells and arguments.
    cpus, gpus
        Per worker.
    max_failures
        How often to go on from the last checkpoint after a worker has died.
    **train
        For :meth:`~scalloy.VAE.train`.

    Examples
    --------
    >>> model = sa.train_on_cluster(sa.VAE(adata), workers=4, gpus=1, address="auto", folder="/shared/run")
    """
    from scalloy.models._options import positive

    ray, torch_trainer = ray_train()
    positive(workers=workers)
    folder = Path(folder).resolve()
    given = {"model": type(model).__name__, "settings": model.init_params_["non_kwargs"]}
    about = {**given, "workers": workers, "train": train, "cells": fingerprint.of_set_up(model.adata_manager)}
    begun(folder, about, resume, "training")
    if not (folder / BEGIN / "model.json").is_file():
        model.save(folder / BEGIN, overwrite=True)
    with running(address):
        cells = ray.put(model._own())
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
    return type(model).load(folder / END, model._own())


def ray_train() -> tuple[Any, Any]:
    """Ray and the trainer of Ray Train, or what to install."""
    try:
        import ray
        import ray.train
        from ray.train.torch import TorchTrainer
    except ImportError as error:
        msg = "`sa.train_on_cluster` runs on Ray Train: pip install 'scalloy[search]'."
        raise ImportError(msg) from error
    return ray, TorchTrainer


def _work(config: dict[str, Any]) -> None:
    """What each worker does."""
    import ray
    from ray.train.lightning import RayDDPStrategy, RayLightningEnvironment

    from scalloy.models import load

    folder, cells = Path(config["folder"]), ray.get(config["cells"][0])
    model = load(folder / BEGIN, cells.copy())  # what Ray shares is read-only
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
