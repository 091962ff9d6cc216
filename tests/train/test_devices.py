"""Two processes that train one model, against one process with the same batches."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
import two_processes as devices
from hypothesis import given, settings
from hypothesis import strategies as hs
from safetensors.torch import load_file

import scalloy as sa
from scalloy.data.batches import CellLoader
from scalloy.data.cell_table import Cells
from scalloy.data.shards import Shard, seed_of


def joined(lists):
    return list(chain.from_iterable(lists))


@settings(deadline=None, max_examples=60)
@given(n=hs.integers(4, 150), size=hs.integers(1, 40), world=hs.integers(1, 4), shuffle=hs.booleans())
def test_parts_of_the_batches_are_the_batches(n, size, world, shuffle):
    """All cells once, as many steps in each process, and together the batches of one process."""
    cells = Cells(np.arange(n, dtype=np.float32)[:, None], {"row": torch.arange(n)[:, None]})

    def batches(rank, of):
        shard = Shard(rank, of, seed=3, epoch=2)
        loader = CellLoader(cells, batch_size=size * world // of, shuffle=shuffle, shard=shard)
        return loader.weights(), [b["row"][:, 0].tolist() for b in loader]

    parts = [batches(rank, world) for rank in range(world)]
    whole = CellLoader(cells, batch_size=size, shuffle=shuffle, shard=Shard(0, world, 3, 2)).whole()
    assert len({len(rows) for _, rows in parts}) == 1
    together = [joined(of_step) for of_step in zip(*(rows for _, rows in parts), strict=True)]
    assert sorted(joined(together)) == list(range(n))
    enough = len(together) == -(-n // (size * world))  # for so many steps in which each has a cell
    assert all(1 <= len(b) <= (size if enough else n) for _, rows in parts for b in rows)
    assert len({len(b) for b in together}) <= 2
    for i, batch in enumerate(together):
        for weights, rows in parts:
            assert weights[i] * len(batch) == pytest.approx(world * len(rows[i]))
    assert [r for b in whole for r in b["row"][:, 0].tolist()] == joined(together)
    if enough:
        assert batches(0, 1)[1] == together


def test_orders_and_noise_have_seeds_of_their_own():
    seeds = {seed_of(s, e, r) for s in (0, 1, 2**40) for e in range(30) for r in (-1, 0, 1, 2)}
    assert len(seeds) == 3 * 30 * 4
    orders = [
        torch.randperm(50, generator=Shard(r, 2, 7, epoch=e).generator()) for r in (0, 1) for e in (0, 1)
    ]
    assert torch.equal(orders[0], orders[2])
    assert not torch.equal(orders[0], orders[1])


def test_too_few_cells_for_the_devices():
    with pytest.raises(ValueError, match=r"2 cell\(s\) cannot be shared by 3 devices.*Pass fewer `devices`"):
        Shard(0, 3, 0).steps(2, 8)


def test_weights_are_not_shared_among_devices(cells, quick):
    with pytest.raises(ValueError, match=r"`strategy='fsdp'` shares the weights.*Pass `strategy='ddp'`"):
        sa.VAE(cells).train(**quick, strategy="fsdp", devices=2)


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> tuple[Path, list[dict]]:
    """What two processes did, see ``two_processes.py``."""
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-W", "ignore", devices.__file__, str(folder)]
    env = {**os.environ, "PL_GLOBAL_SEED": "77"}  # as `scvi.settings.seed = 77` leaves it: not ours
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=folder, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not (folder / "lightning_logs").exists()
    return folder, [json.loads((folder / f"said-{rank}.json").read_text()) for rank in (0, 1)]


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(folder / f"{name}.safetensors")


def test_each_cell_once_per_epoch_in_as_many_steps(two):
    _, (a, b) = two
    assert a["train"] == b["train"]
    assert len(a["rows"]) == len(b["rows"]) == devices.RUN["max_epochs"]
    for one, other in zip(a["rows"], b["rows"], strict=True):
        assert len(one) == len(other)
        assert sorted(joined(one + other)) == sorted(a["train"])
    assert a["rows"][0] != a["rows"][1]


def test_the_same_model_as_in_one_process(two):
    """Without noise (AE, no dropout) weights and history are those of one process with the whole batches."""
    folder, (said, _) = two
    seen = devices.Seen()
    model = devices.alone(callbacks=[seen])
    assert model.validation_indices.tolist() == said["validation"]
    assert [[sorted(b) for b in e] for e in seen.rows] == [
        [sorted(a + b) for a, b in zip(*epochs, strict=True)]
        for epochs in zip(*(s["rows"] for s in two[1]), strict=True)
    ]
    found = weights(folder, "exact-0")
    before = devices.a_model(dropout_rate=0.0).module.state_dict()
    for key, value in model.module.state_dict().items():
        torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-4)
    moved = max(float((before[k] - v).abs().max()) for k, v in found.items())
    assert moved > 0.05  # a hundred times as far as they may differ
    for key, column in model.history.items():
        np.testing.assert_allclose(said["history"][key], column.iloc[:, 0].astype(float), rtol=1e-4)


@pytest.mark.parametrize("name", ["exact", "whole", "resumed", *devices.EVERY])
def test_processes_end_with_the_same_weights(two, name):
    """Of every model: placing components, learning from all cells and the best weights included."""
    one, other = (weights(two[0], f"{name}-{rank}") for rank in (0, 1))
    assert all(torch.equal(one[k], other[k]) for k in one)
    if name == "CGMDVAE":
        assert one["prior.placed"] == 1
        assert one["readers.of_z.fitted"]


def test_training_goes_on_from_a_checkpoint(two):
    whole, resumed = (weights(two[0], f"{name}-0") for name in ("whole", "resumed"))
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)


def test_all_stop_together(two):
    """Early, by Ctrl-C in one of them, or because the loss of one breaks."""
    _, (a, b) = two
    assert a["stopped"] == b["stopped"] < 60
    assert a["interrupted"] == b["interrupted"] == 2
    assert a["error"] == b["error"]
    assert "not finite in epoch 0: reconstruction_loss, kl_z" in a["error"]["message"]
    assert a["error"]["weights are those before"]
    assert a["shared"].startswith("1 cell(s) cannot be shared by 2 devices")


NOTEBOOK = """
import scalloy as sa
if __name__ == "__main__":
    model = sa.CGMDVAE(sa.datasets.simulate(203, 40, seed=1), n_hidden=16, n_latent=3)
    model.train(max_epochs=3, devices=2, strategy="{}", accelerator="cpu", enable_progress_bar=False)
    print(len(model.history["validation_loss"]), float(model.module.prior.placed), len(model.train_indices))
"""


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_notebook"])
def test_processes_that_are_not_scripts_give_back_the_model(strategy, tmp_path):
    (tmp_path / "run.py").write_text(NOTEBOOK.format(strategy))
    command = [sys.executable, "-W", "ignore", "run.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "3 1.0 183"


@pytest.mark.slow
def test_the_script_of_the_page_runs(tmp_path):
    page = (Path(__file__).parents[2] / "docs/clusters.md").read_text()
    script = re.findall(r"```python\n(.*?)```", page, flags=re.S)[0]
    (tmp_path / "run.py").write_text(script.replace("model.train(", "model.train(max_epochs=1, "))
    command = [sys.executable, "-W", "ignore", "run.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert sa.load(tmp_path / "kang_model").is_trained_
