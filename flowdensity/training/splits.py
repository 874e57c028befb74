"""Which rows are held out: every kind of row in one part, however often it is repeated."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np

from .._typing import Array, Int, Key
from ..data.tables import Sample


def splits(key: Key, table: Sample, held: int, folds: int) -> list[tuple[Int[Array, " kept"], Int[Array, " held"]]]:
    """Numbers of the rows to train on and of those held out, for each fold: other rows in each, in random order.

    Copies of a row are neighbors. Where the end of a part goes through them, those that are left to train on make room for
    other rows, which are trained on once more: all folds have the same sizes.

    Args:
        key: JAX PRNG key.
        table: whitened rows.
        held: rows to hold out in each fold.
        folds: number of folds, at most as many as there are parts of `held` rows.
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
