"""The plan: weights, warm-up, names, best weights, and what happens when a loss breaks."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import scalloy as sa
from scalloy.models._core.training import default_batch_size, default_epochs, largest_batch, one_gpu
from scalloy.train.malloc import buffers_stay_mapped
from scalloy.train.plan import NonFiniteLoss, TermsPlan
from scalloy.train.schedules import cosine, ramp

SMALL = {"n_hidden": 16, "n_latent": 4}


def model_of(cells, **kwargs):
    sa.VAE.setup_anndata(cells)
    return sa.VAE(cells, **SMALL, **kwargs)


def test_schedules():
    assert [ramp(t, 0.5) for t in (0, 0.25, 0.5, 1)] == [0, 0.5, 1, 1]
    assert ramp(0, 0) == 1
    curve = [cosine(t) for t in np.linspace(0, 1, 200)]
    assert max(curve) <= 1
    assert curve[0] < 0.02
    assert np.argmax(curve) < 8
    assert curve[-1] == pytest.approx(0.02)


def test_best_weights_are_of_the_final_objective(cells):
    """Labels cost nothing before components are placed: the lowest loss is there, and must not be taken."""
    sa.CGMDVAE.setup_anndata(cells, labels_key="cluster")
    model = sa.CGMDVAE(cells, label_weight=1e5, **SMALL)
    model.train(max_epochs=20, enable_progress_bar=False, accelerator="cpu", early_stopping_patience=3)
    losses = model.history["validation_loss"].iloc[:, 0].astype(float)
    assert losses.idxmin() < 4  # before placing
    assert len(losses) > 8  # which did not stop training
    assert model.module.prior.placed == 1


def test_terms_are_weighed_and_summed():
    module = torch.nn.Linear(1, 1)
    plan = TermsPlan(module, weights={"z": 4.0, "mmd": 0.5})
    plan.n_obs_training = 10
    one = torch.tensor(1.0)
    means = {
        "reconstruction_loss": 3 * one,
        "kl_z": one,
        "kl_w": one,
        "kl_global_pi": 20 * one,
        "penalty_mmd": 6 * one,
    }
    assert plan.weigh(means).item() == pytest.approx(3 + 4 + 1 + 2 + 3)
    assert plan.weigh(means, kl_weight=0.5).item() == pytest.approx(3 + 2 + 0.5 + 2 + 3)
    all_kl = TermsPlan(module, weights={"kl": 0.0})
    all_kl.n_obs_training = 1
    assert all_kl.weigh({"reconstruction_loss": one, "kl_z": one}).item() == 1


def test_warm_up_is_a_fraction_of_the_real_steps(cells, quick):
    model = model_of(cells)
    model.train(**{**quick, "max_epochs": 8}, plan_kwargs={"kl_warmup": 0.5})
    weights = model.history["kl_weight"].iloc[:, 0].astype(float).to_numpy()
    np.testing.assert_allclose(weights, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1])
    model = model_of(cells)
    model.train(**{**quick, "max_epochs": 4}, plan_kwargs={"n_epochs_kl_warmup": 2})
    np.testing.assert_allclose(model.history["kl_weight"].iloc[:, 0].astype(float), [0.5, 1, 1, 1])


def test_warm_up_counts_steps_of_several_batches(cells, quick):
    sa.VAE.setup_anndata(cells)
    model = sa.VAE(cells, n_hidden=8, n_latent=2)
    settings = {**quick, "max_epochs": 10, "batch_size": 30, "accumulate_grad_batches": 4}
    model.train(plan_kwargs={"kl_warmup": 0.5}, early_stopping=False, **settings)
    weights = model.history["kl_weight"].iloc[:, 0].astype(float).to_numpy()
    np.testing.assert_allclose(weights[[0, 4, 9]], [0.2, 1, 1], atol=1e-6)


def test_history_names_every_term_and_adds_up(cells, quick):
    sa.BetaVAE.setup_anndata(cells, batch_key="batch")
    model = sa.BetaVAE(cells, beta=3.0, library="learned", **SMALL)
    model.train(**quick)
    last = {k: float(v.iloc[-1, 0]) for k, v in model.history.items()}
    for mode in ("train", "validation"):
        kl = last[f"kl_z_{mode}"] + last[f"kl_ell_{mode}"]
        assert last[f"kl_local_{mode}"] == pytest.approx(kl, rel=1e-5)
        assert last[f"elbo_{mode}"] == pytest.approx(last[f"reconstruction_loss_{mode}"] + kl, rel=1e-5)
    kl = 3 * last["kl_z_validation"] + last["kl_ell_validation"]
    weighted = last["reconstruction_loss_validation"] + kl
    assert last["validation_loss"] == pytest.approx(weighted, rel=1e-5)


@pytest.mark.parametrize("weights", ["global", "condition"])
def test_the_bound_of_the_history_shares_what_is_of_all_cells_among_those_trained_on(weights, cells, quick):
    sa.CGMDVAE.setup_anndata(cells, condition_key="condition")
    model = sa.CGMDVAE(cells, weights=weights, conditioning="interaction", **SMALL)
    model.train(**{**quick, "max_epochs": 6}, train_size=0.7)  # 140 cells
    last = {k: float(v.iloc[-1, 0]) for k, v in model.history.items()}
    for mode in ("train", "validation"):
        shared = [last[f"kl_global_{k}_{mode}"] / 140 for k in ("pi", "own")]
        per_cell = last[f"reconstruction_loss_{mode}"] + last[f"kl_local_{mode}"]
        assert last[f"elbo_{mode}"] - per_cell == pytest.approx(sum(shared), rel=1e-2)
        assert sum(shared) > 1e-2


def test_history_is_the_mean_over_cells(cells, quick):
    """The last validation loss of an untouched model is what the getter computes."""
    model = model_of(cells, dropout_rate=0.0)
    model.train(**quick, plan_kwargs={"lr": 0.0})
    held = model.validation_indices
    elbo = np.mean([model.get_elbo(indices=held) for _ in range(200)])
    assert -float(model.history["elbo_validation"].iloc[-1, 0]) == pytest.approx(elbo, rel=0.01)


def test_best_weights_are_restored_after_early_stopping(cells, quick):
    """A learning rate which ruins the model after the first epochs: the best epoch's weights come back."""
    model = model_of(cells)
    seen = []

    class Watch(sa.train.plan.pl.Callback):
        def on_validation_end(self, trainer, plan):
            seen.append({k: v.clone() for k, v in plan.module.state_dict().items()})
            for group in trainer.optimizers[0].param_groups:
                group["lr"] = 0.5
            plan.lr = 0.5 if len(seen) > 2 else plan.lr

    model.train(
        **{**quick, "max_epochs": 30},
        callbacks=[Watch()],
        early_stopping_patience=4,
        plan_kwargs={"lr_schedule": "constant"},
    )
    losses = model.history["validation_loss"].iloc[:, 0].astype(float).to_numpy()
    assert len(losses) < 30
    best = int(losses.argmin())
    assert best < len(losses) - 1
    for key, value in model.module.state_dict().items():
        torch.testing.assert_close(value, seen[best][key])


def test_a_loss_that_breaks_names_its_term_and_keeps_the_last_good_weights(cells, quick):
    model = model_of(cells)
    model.train(**quick)
    good = {k: v.clone() for k, v in model.module.state_dict().items()}
    objective = model.module.objective
    calls = []

    def broken(batch):
        terms = objective(batch)
        calls.append(1)
        if len(calls) > 1:
            terms.kl["z"] = terms.kl["z"] * float("nan")
        return terms

    model.module.objective = broken
    with pytest.raises(NonFiniteLoss, match=r"not finite in epoch 0: kl_z\. The weights of the last good"):
        model.train(**quick)
    for key, value in model.module.state_dict().items():
        torch.testing.assert_close(value, good[key])


def test_wrong_plan_arguments(cells, quick):
    with pytest.raises(ValueError, match="`lr_schedule='linear'` is not known"):
        model_of(cells).train(**quick, plan_kwargs={"lr_schedule": "linear"})
    with pytest.raises(ValueError, match="`kl_warmup=400` is a fraction"):
        model_of(cells).train(**quick, plan_kwargs={"kl_warmup": 400})


def test_without_validation(cells, quick):
    model = model_of(cells)
    model.train(**quick, train_size=1.0)
    assert "validation_loss" not in model.history
    assert len(model.train_indices) == 200


def test_defaults_follow_the_number_of_cells():
    assert [default_batch_size(n) for n in (10, 2638, 16412, 10**6)] == [64, 64, 256, 512]
    assert [default_batch_size(n, 4096) for n in (2638, 100_000, 10**6)] == [64, 2048, 4096]
    assert [default_epochs(n, default_batch_size(n)) for n in (100, 16412, 10**7)] == [200, 44, 20]


def test_buffers_stay_mapped_ends_quietly():
    with buffers_stay_mapped():
        assert torch.zeros(1000, 1000).sum() == 0


def test_second_training_is_in_training_mode(cells, quick):
    model = model_of(cells, dropout_rate=0.5)
    modes = []

    class Watch(sa.train.plan.pl.Callback):
        def on_train_batch_start(self, trainer, plan, *_):
            modes.append(all(m.training for m in plan.module.modules()))

    for _ in range(2):
        model.train(**quick, callbacks=[Watch()])
    assert all(modes)
    assert not model.module.training


def test_weights_are_merged_and_their_names_checked(cells, quick):
    sa.BetaVAE.setup_anndata(cells)
    model = sa.BetaVAE(cells, beta=3.0, library="learned", **SMALL)
    model.train(**quick, plan_kwargs={"weights": {"ell": 0.5}})
    last = {k: float(v.iloc[-1, 0]) for k, v in model.history.items()}
    expected = last["reconstruction_loss_validation"] + 3 * last["kl_z_validation"]
    expected += 0.5 * last["kl_ell_validation"]
    assert last["validation_loss"] == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match=r"`weights` names \['Z'\], but the terms are"):
        model.train(**quick, plan_kwargs={"weights": {"Z": 4.0}})


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson", "zip"])
def test_mixed_precision_with_clipping(cells, quick, likelihood):
    model = model_of(cells, gene_likelihood=likelihood)
    model.train(**quick, precision="bf16-mixed", gradient_clip_val=10.0)
    assert np.isfinite(model.history["train_loss"].to_numpy(dtype=float)).all()


def test_few_cells_have_no_validation_set_and_still_train(quick):
    model = model_of(sa.datasets.simulate(9, 20))
    model.train(**quick)
    assert len(model.validation_indices) == 0


def test_data_are_let_go_after_training(cells, quick):
    model = model_of(cells)
    model.train(**quick)
    loader = model.trainer.train_dataloader
    assert loader.cells is None
    assert model.trainer.datamodule.cells is None


def test_terms_of_many_steps_are_kept_in_few_tensors(cells):
    """Small tensors between the buffers of the steps would keep these from being used again."""
    from scalloy.train.plan import AT_MOST

    plan, rng, given = TermsPlan(model_of(cells).module), np.random.default_rng(0), []
    logged = {}
    plan.log = lambda name, value, **_: logged.update({name: value})
    alone = SimpleNamespace(reduce=lambda sums, reduce_op: sums)
    plan._trainer = SimpleNamespace(world_size=1, strategy=alone)
    for n in rng.integers(1, 9, size=5 * AT_MOST):
        recon, kl = rng.normal(size=2)
        given.append((n, recon, kl))
        means = {"reconstruction_loss": torch.tensor(recon), "kl_z": torch.tensor(kl)}
        plan._keep(plan._row(means, torch.tensor(recon + kl)), int(n))
        assert len(plan._rows) <= AT_MOST
    plan._flush("train")
    sizes, recon, kl = np.array(given).T
    assert logged["reconstruction_loss_train"] == pytest.approx(sizes @ recon / sizes.sum())
    assert logged["train_loss"] == pytest.approx(sizes @ (recon + kl) / sizes.sum())
    assert plan._rows == plan._sizes == []


@pytest.mark.parametrize(
    ("accelerator", "devices", "gpus", "one"),
    [
        ("auto", "auto", 1, True),
        ("auto", "auto", 2, False),
        ("gpu", 1, 2, True),
        ("gpu", [1], 2, True),
        ("gpu", 2, 2, False),
        ("gpu", [0, 1], 2, False),
        ("cpu", 1, 1, False),
        ("auto", "auto", 0, False),
    ],
)
def test_batches_grow_with_the_memory_of_one_gpu(accelerator, devices, gpus, one, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert one_gpu(accelerator, devices) == one
    for free, wanted in ((80e9, 4096), (1e9, 2048), (1e7, 64)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda free=free: (free, free))
        assert largest_batch(2000) == wanted
