"""Mixing of batches within the components of a mixture: a penalty on what still tells them apart.

    sum_{k, b < b'} v_kbb' MMD^2(z | k, b; z | k, b') / sum v       v_kbb' = n_kb n_kb' / (n_kb + n_kb')

``n_kb`` is the expected number of cells of batch ``b`` in component ``k``. Batches may consist of different
cell types, so codes of whole batches must not be made alike; within a component, they may. Cells are weighted
by their probability of the component, through which no gradient flows: a cell cannot escape the penalty by
changing its component. Harmony corrects principal components by clusters for the same reason (Korsunsky et
al., Nature Methods 2019).
"""

from __future__ import annotations

from torch import Tensor

from scalloy.blocks import divergences as div

LEAST = 3  # expected cells of a batch in a component that are compared


def between_batches(z: Tensor, b: Tensor, r: Tensor, n_batch: int) -> Tensor:
    """Return the mean squared MMD between batches within components, written at the top of this file.

    Parameters
    ----------
    z
        Codes of cells.
    b, n_batch
        Code of the batch of each cell, and the number of batches.
    r
        Probability of each component, cells x components.
    """
    known = b.clamp(0, n_batch - 1)  # cells that are only read may be of a batch that is new
    return div.between_groups(
        z,
        known,
        div.median_scales(z),
        n_groups=n_batch,
        within=r.detach(),
        n_within=r.shape[-1],
        at_least=LEAST,
        by_size=True,
    )
