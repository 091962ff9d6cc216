"""A Ray cluster of two nodes, each with room for one worker."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
import torch
import two_processes as devices

import scalloy as sa

ray = pytest.importorskip("ray", reason="the extra `search` is not installed")


@pytest.fixture(scope="module")
def address():
    from ray.cluster_utils import Cluster

    paths = [str(Path(devices.__file__).parent), os.environ.get("PYTHONPATH", "")]
    with pytest.MonkeyPatch.context() as patch:  # workers unpickle a callback of the tests
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    assert [n["Resources"]["CPU"] for n in ray.nodes()] == [1, 1]
    yield cluster.address
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.slow
def test_workers_train_the_model_of_one_process_though_one_dies(address, tmp_path):
    """One worker per node; the second is killed after two epochs, and all go on."""
    dies, model = devices.Dies(tmp_path), devices.a_model(dropout_rate=0.0)
    run = {"workers": 2, "address": address, "folder": tmp_path / "run"}
    found = sa.train_on_cluster(model, **run, **devices.RUN, callbacks=[dies])
    assert dies.mark.exists()
    expected = devices.alone()
    for key, value in expected.module.state_dict().items():
        torch.testing.assert_close(found.module.state_dict()[key], value, rtol=1e-3, atol=1e-4)
    assert len(found.history["validation_loss"]) == devices.RUN["max_epochs"]
    assert found.train_indices.tolist() == expected.train_indices.tolist()
    assert found.get_latent_representation().shape == (203, 3)
    with pytest.raises(FileExistsError, match=r"is in use\. Pass `resume=True`"):
        sa.train_on_cluster(model, **run, **devices.RUN)
    with pytest.raises(ValueError, match=r"holds another training: see its training\.json"):
        sa.train_on_cluster(model, **run, max_epochs=9, resume=True)


@pytest.mark.slow
def test_the_page_runs(address, tmp_path, monkeypatch):
    """Training and search as the page on clusters shows them, with fewer workers, cells and epochs."""
    kang = sa.datasets.kang()[::6].copy()
    monkeypatch.setattr(sa.datasets, "kang", lambda: kang)
    page = (Path(__file__).parents[2] / "docs/clusters.md").read_text()
    code = re.findall(r"```python\n(.*?)```", page, flags=re.S)[1]
    for shown, here in (
        ('"auto", "/shared"', f"{address!r}, {str(tmp_path)!r}"),
        ("workers=4, gpus=1", "workers=2"),
        ("max_epochs=100", "max_epochs=2"),
    ):
        assert shown in code
        code = code.replace(shown, here)
    names: dict = {}
    exec(code, names)
    assert names["model"].is_trained_
    assert names["best"].init_params_["non_kwargs"]["n_latent"] in (10, 20)
    status = list(names["found"].table["status"])
    assert status[0] == "finished"
    assert len(status) == 2
    assert "failed" not in status


def test_a_missing_extra_names_itself(monkeypatch, cells):
    monkeypatch.setitem(sys.modules, "ray.train.torch", None)
    with pytest.raises(ImportError, match=r"`sa.train_on_cluster`.*pip install 'scalloy\[search\]'"):
        sa.train_on_cluster(sa.VAE(cells), workers=2)
