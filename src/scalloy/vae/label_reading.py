"""What a trained model with a mixture learns about its labels: where they are, and who has none."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from scalloy.vae.base import Batch


@torch.no_grad()
def learn_labels(module: Any, cells: Callable[[], Iterable[Batch]]) -> None:
    """Fit the classifiers of labels and the signs of unknown types.

    Parameters
    ----------
    module
        Model with ``prior``, ``readers``, ``unknowns`` and ``expression``.
    cells
        Function that goes once through the cells that are trained on.
    """
    prior, found = module.prior, []
    for b in cells():
        q = module.encode(b)
        means = {k: v.mean for k, v in q.items()}
        found.append((b.condition, b.label, module.assignment(b, q=q), means))
    c, y, r = (torch.cat([row[i] for row in found]) for i in range(3))
    means = {k: torch.cat([row[3][k] for row in found]) for k in found[0][3]}
    prior.measure(prior(c, means.get("w")), means["z"], y)
    module.unknowns.look_for_labels(r, y < prior.n_labels, prior.label_of < 0)
    read = ((module.encode(b)["z"].mean, module.expression(b), b.label) for b in cells())
    module.unknowns.fit(*module.readers.fit(read))
