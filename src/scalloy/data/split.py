"""Splitting of cells into training, validation and test sets."""

from __future__ import annotations

import numpy as np


def split(
    n: int,
    train_size: float | None = None,
    validation_size: float | None = None,
    *,
    shuffle: bool = True,
    seed: int = 0,
    kept: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Split all rows into disjoint sets for training, validation and test.

    Parameters
    ----------
    n
        Number of cells.
    train_size
        Fraction of cells to train on; ``None`` is 0.9.
    validation_size
        Fraction of cells to validate on; ``None`` takes all that are not used for training.
    shuffle
        Whether to draw at random; otherwise validation, training and test follow each other in data order.
    seed
        Random seed of the draw.
    kept
        Mask of cells that go into the training set first, as far as there is room.
    """
    train_size = 0.9 if train_size is None else train_size
    if not 0 < train_size <= 1:
        msg = f"`train_size={train_size}` must lie in (0, 1]."
        raise ValueError(msg)
    n_train = int(np.ceil(round(train_size * n, 6)))
    rest = n - n_train
    n_val = rest if validation_size is None else int(np.floor(round(validation_size * n, 6)))
    if not 0 <= n_val <= rest:
        msg = f"`train_size={train_size}` and `validation_size={validation_size}` sum to more than 1."
        raise ValueError(msg)
    order = np.random.default_rng(seed).permutation(n) if shuffle else np.arange(n)
    if kept is not None:
        first = order[kept[order]][:n_train]
        others = order[~np.isin(order, first)]
        order = np.concatenate([others[:n_val], first, others[n_val:]])
    val, train, test = np.split(order, [n_val, n_val + n_train])
    return train, val, test
