"""No more threads than cores, whatever other packages have set."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch

import scalloy as sa
from scalloy import _threads


@pytest.fixture(autouse=True)
def _as_before():
    n = torch.get_num_threads()
    _threads.available.cache_clear()
    yield
    torch.set_num_threads(n)
    _threads.available.cache_clear()


def test_what_was_asked_for_holds_after_others_have_set_more(monkeypatch, cells, quick):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    sa.VAE.setup_anndata(cells)
    model = sa.VAE(cells, n_hidden=8)
    for call in (lambda: model.train(**quick), model.get_latent_representation):
        torch.set_num_threads(3)  # as numba's loops do
        call()
        assert torch.get_num_threads() == 1


@pytest.mark.parametrize(
    ("quota", "cores"), [("150000 100000", 2), ("50000 100000", 1), ("max 100000", 8), ("odd", 8), (None, 8)]
)
def test_quota_and_affinity(monkeypatch, tmp_path, quota, cores):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(_threads, "QUOTA", tmp_path / "cpu.max")
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota)
    assert _threads.available() == cores
    torch.set_num_threads(1)
    _threads.keep_to_cores()
    assert torch.get_num_threads() == 1  # fewer are left as they are
    assert math.isfinite(_threads.available())


@pytest.mark.parametrize(
    ("given", "turns"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_threads_wait_briefly_unless_the_user_says_how(given, turns):
    """It is set before torch is there, which reads it when it is loaded."""
    code = (
        "import sys, os, scalloy; assert 'torch' not in sys.modules; print(os.environ.get('GOMP_SPINCOUNT'))"
    )
    kept = {k: v for k, v in os.environ.items() if k not in {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=kept | given, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(turns)
