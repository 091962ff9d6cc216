"""What only a GPU can show. The kernels are tested without one too, in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

import scalloy as sa
from scalloy.blocks.divergences import between_groups, median_scales
from scalloy.data.batches import CellLoader
from scalloy.data.cell_table import Cells
from scalloy.data.on_device import DeviceCells, DeviceLoader
from scalloy.kernels import count_log_prob, gpu
from scalloy.kernels.csr import dense
from scalloy.train.plan import TermsPlan
from scalloy.vae.vae import VAE as VAEOfCells

SMALL = {"n_hidden": 16, "n_latent": 4}
MODELS = {
    "AE": (sa.AE, {}),
    "VAE": (sa.VAE, {}),
    "VAE_zinb": (sa.VAE, {"gene_likelihood": "zinb", "dispersion": "gene-cell"}),
    "VAE_pc": (sa.VAE, {"k_max": 3, "norm": "batch"}),
    "GMVAE": (sa.GMVAE, {"n_clusters": 3}),
    "BetaVSC": (sa.BetaVSC, {}),
    "POISEVAE": (sa.POISEVAE, {"n_chains": 32}),
    "TRVAE": (sa.TRVAE, {}),
    "CGMDVAE": (sa.CGMDVAE, {}),
    "CGMDVAE_w": (sa.CGMDVAE, {"n_w": 2, "w_prior": "condition", "conditioning": "full"}),
}


def difference(device):
    """Of each result from the reference in double precision, relative, over all cases."""
    worst = 0.0
    generator = torch.Generator().manual_seed(0)
    for n, n_genes in ((3, 37), (2, 2500)):
        mean = torch.tensor([0.2, 3.0, 40.0]).repeat(n_genes)[:n_genes]
        x = torch.poisson(mean * torch.rand(n, n_genes, generator=generator), generator=generator)
        x[0, 0] = 3000
        logits, gates = (2 * torch.randn(n, n_genes, generator=generator) for _ in range(2))
        thetas = 3 * torch.randn(n, n_genes, generator=generator)
        ells = 7.5 + 0.3 * torch.randn(n, 1, generator=generator)
        for ell in (None, ells):
            for theta in (None, thetas[:1], thetas):
                for gate in (None, gates):
                    given = [v if v is None else v.to(device) for v in (x, logits, ell, theta, gate)]
                    found = gpu.log_prob(*given)
                    x64, *others = (v if v is None else v.double() for v in (x, logits, ell, theta, gate))
                    wanted = count_log_prob.in_torch(x64.to_sparse_csr(), *others)
                    for a, b in zip(found, wanted, strict=True):
                        assert (a is None) == (b is None)
                        if a is not None:
                            worst = max(worst, float((a.cpu().double() - b).norm() / b.norm()))
    return worst


def rows_differ(device):
    """Whether rows that a kernel writes are not those of the matrix."""
    x = torch.poisson(torch.rand(6, 300, generator=torch.Generator().manual_seed(1)) * 0.7)
    x[3] = 0
    s, rows = x.to_sparse_csr(), torch.tensor([4, 0, 3, 0])
    parts = (v.to(device) for v in (s.crow_indices(), s.col_indices(), s.values(), rows))
    return bool((gpu.rows_of(*parts, 300).cpu() != x[rows]).any())


@pytest.mark.skipif(find_spec("triton") is None, reason="needs triton, which torch brings along for a GPU")
def test_kernels_in_the_interpreter():
    code = "import test_gpu; assert test_gpu.difference('cpu') < 1e-5; assert not test_gpu.rows_differ('cpu')"
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def on_a_gpu(test):
    skip = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    return pytest.mark.gpu(skip(test))


@on_a_gpu
def test_kernels():
    assert difference("cuda") < 1e-5
    assert not rows_differ("cuda")


@on_a_gpu
def test_log_probability_and_gradients_are_those_of_a_cpu():
    torch.manual_seed(0)
    x = torch.poisson(torch.rand(50, 300) * 2)
    start = [2 * torch.randn(3, 50, 300), torch.randn(1, 300), torch.randn(3, 50, 300)]
    ell = torch.full((50, 1), 6.0)
    found = {}
    for device in ("cpu", "cuda"):
        logits, theta, gate = (v.clone().to(device).requires_grad_() for v in start)
        counts = x.to_sparse_csr().to(device)
        each = count_log_prob.count_log_prob(
            counts, logits, log_ell=ell.to(device), log_theta=theta, gate=gate
        )
        (each * torch.arange(50.0, device=device)).sum().backward()
        found[device] = [v.detach().cpu() for v in (each, logits.grad, theta.grad, gate.grad)]
        assert each.shape == (3, 50)
    for a, b in zip(found["cpu"], found["cuda"], strict=True):
        torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-3)


@on_a_gpu
def test_batches_are_those_of_the_host(cells):
    sa.VAE.setup_anndata(cells, batch_key="batch")
    data = Cells.of(sa.VAE(cells).adata_manager)
    store = DeviceCells(data, torch.device("cuda"))
    rows = np.arange(3, 190)
    there = DeviceLoader(data, rows, batch_size=50, store=store)
    pairs = zip(CellLoader(data, rows, batch_size=50), there, strict=True)
    for a, b in pairs:
        assert b["X"].layout == torch.strided
        assert a.keys() == b.keys()
        assert all(torch.equal(dense(a[k]), b[k].cpu()) for k in a)


def trained(name, cells, epochs=3, **more):
    cls, settings = MODELS[name]
    cls.setup_anndata(cells, batch_key="batch", labels_key="cluster", continuous_covariate_keys=["score"])
    model = cls(cells, **SMALL, **settings)
    plans = []
    init = TermsPlan.on_train_end

    def on_train_end(plan):
        plans.append(plan._recorder)
        init(plan)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TermsPlan, "on_train_end", on_train_end)
        model.train(
            max_epochs=epochs, accelerator="gpu", devices=1, enable_progress_bar=False, batch_size=64, **more
        )
    return model, plans[0]


@on_a_gpu
@pytest.mark.parametrize("name", MODELS)
def test_graphs_change_nothing(name, cells):
    plain, nothing = trained(name, cells, plan_kwargs={"graphs": False})
    model, recorder = trained(name, cells)
    assert nothing is None
    assert recorder is not None
    assert recorder.works
    assert len(recorder.known) > 0
    for column in ("train_loss", "validation_loss"):
        a, b = (np.asarray(m.history_[column], dtype=float).ravel() for m in (plain, model))
        np.testing.assert_allclose(a, b, rtol=2e-3)
    z = model.get_latent_representation()
    assert np.isfinite(z).all()


@on_a_gpu
@pytest.mark.parametrize("name", ["VAE", "CGMDVAE"])
def test_bfloat16_and_data_that_stay_behind(name, cells):
    _, recorder = trained(name, cells, precision="bf16-mixed", datasplitter_kwargs={"resident": False})
    assert recorder.works


@on_a_gpu
def test_a_step_that_cannot_be_recorded_is_taken_as_ever(cells, monkeypatch):
    def waits(self, batch):
        terms = objective(self, batch)
        float(terms.recon.sum())
        return terms

    objective = VAEOfCells.objective
    monkeypatch.setattr(VAEOfCells, "objective", waits)
    model, recorder = trained("VAE", cells)
    assert not recorder.works
    assert np.isfinite(np.asarray(model.history_["train_loss"], dtype=float)).all()


@on_a_gpu
def test_broken_numbers_are_found(cells):
    with pytest.raises(FloatingPointError, match="not finite"):
        trained("VAE", cells, plan_kwargs={"lr": 1e30})


@on_a_gpu
def test_gradients_can_be_clipped_and_training_goes_on(cells):
    model, recorder = trained("CGMDVAE", cells, gradient_clip_val=1.0)
    assert recorder.works
    model.train(max_epochs=2, accelerator="gpu", devices=1, enable_progress_bar=False)
    assert len(model.history_["train_loss"]) == 5


@on_a_gpu
def test_distances_of_the_penalty_by_products():
    torch.manual_seed(0)
    x = 5 + torch.randn(3000, 128) * torch.rand(128)
    groups, found = torch.arange(3000) % 3, {}
    x[groups == 1] += 0.1
    for device in ("cpu", "cuda"):
        there = x.clone().to(device).requires_grad_()
        value = between_groups(there, groups.to(device), median_scales(there), n_groups=3)
        value.backward()
        found[device] = value.detach().cpu(), there.grad.cpu()
    torch.testing.assert_close(found["cuda"][0], found["cpu"][0], rtol=1e-3, atol=1e-6)
    assert (found["cuda"][1] - found["cpu"][1]).norm() < 1e-3 * found["cpu"][1].norm()


@on_a_gpu
@pytest.mark.parametrize("name", ["VAE", "CGMDVAE"])
def test_loaded_models_and_queries_are_on_it_too(name, cells, tmp_path):
    model, _ = trained(name, cells)
    model.save(tmp_path)
    loaded = sa.load(tmp_path, cells.copy())
    assert model.device.type == loaded.device.type == "cuda"
    np.testing.assert_array_equal(loaded.get_latent_representation(), model.get_latent_representation())
    query = cells.copy()
    query.obs["batch"] = ["new", *query.obs["batch"].astype(str)[1:]]
    mapped = type(model).load_query_data(query, model)
    assert mapped.device.type == "cuda"
    mapped.train(max_epochs=2, accelerator="gpu", devices=1, enable_progress_bar=False)
    z = mapped.get_latent_representation()
    assert np.isfinite(z).all()
    known = query.obs["batch"] != "new"
    expected = model.get_latent_representation(query[known].copy())
    np.testing.assert_allclose(z[known], expected, rtol=1e-3, atol=1e-3)
