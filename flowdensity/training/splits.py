"""Splitting rows into training rows and held-out rows, with all copies of a row on the same side."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np

from .._typing import Array, Int, Key
from ..data.tables import Sample


def splits(key: Key, table: Sample, held: int, folds: int) -> list[tuple[Int[Array, " kept"], Int[Array, " held"]]]:
    """Indices of the training rows and the held-out rows of each fold, in random order.

    Each fold holds out different rows. Copies of a row are neighbors in the order. If a held-out part ends between copies, the
    remaining copies are not trained on. Other training rows are repeated in their place, so that all folds have the same sizes.

    Args:
        key: JAX PRNG key.
        table: whitened rows.
        held: number of rows to hold out in each fold.
        folds: number of folds, at most the number of parts of `held` rows.
    """
    order = np.asarray(jr.permutation(key, len(table.states)))
    first, kind = table.kinds()
    order = np.argsort(np.argsort(order)[first][kind], kind="stable")
    pairs = []
    for fold in range(folds):
        part = np.roll(order, -fold * held)
        out, kept = part[:held], part[held:]
        apart = kept[~np.isin(kind[kept], kind[out])]
        pairs.append((jnp.asarray(np.resize(apart, kept.shape) if len(apart) else kept), jnp.asarray(out)))
    return pairs
