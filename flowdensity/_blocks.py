"""Mapping a function over many rows in blocks that fit a cache, so that memory does not grow with the number of rows."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr

from ._typing import Array, Int

AT_ONCE = 64
"""Number of rows up to which there is one block, since measuring the size of a row would take longer than it could save."""
CACHE = 2**18
"""Bytes of the largest array of a block on a CPU: a few such arrays and the weights of a layer fit a second-level cache."""
ACCELERATOR = 2**24
"""Bytes of the largest array of a block on an accelerator, which needs thousands of rows to be busy."""
ROWS = 8191
"""Number of rows for tracing. It is unlikely to be the size of another axis, so it identifies arrays that grow with the rows."""


def over_rows(one: Callable[..., Any], *arrays: Array) -> Any:
    """Apply `one` to each row, like `jax.vmap(one)(*arrays)`, but in blocks if the rows do not fit into one block.

    All blocks have the same number of rows, so the result for a row does not depend on the number of blocks. The last block is
    padded with the first rows. Reverse-mode derivatives recompute each block, so they too need the memory of only one block.

    Args:
        one: function of one row of each array.
        arrays: arrays with one leading axis of rows, all of the same length.

    Returns:
        The results of `one`, with a leading axis of rows.
    """
    many = jax.vmap(one)
    count = len(arrays[0])
    size = block_rows(one, *arrays) if count > AT_ONCE else count
    if count <= size:
        return many(*arrays)
    blocks = -(-count // size)
    # In a loop the two computations of a block cannot share anything, so no barrier against sharing is needed.
    block = jax.checkpoint(lambda rows: many(*rows), prevent_cse=False)
    results = jax.lax.map(block, [_divided(array, blocks, size) for array in arrays])
    return jax.tree.map(lambda leaf: leaf.reshape(blocks * size, *leaf.shape[2:])[:count], results)


def blocks_of(count: int, size: int) -> Iterator[Int[np.ndarray, " size"]]:
    """Indices of rows in blocks of one size, so that nothing is compiled for another; the last row fills the last block."""
    for start in range(0, count, size):
        yield np.minimum(np.arange(start, start + size), count - 1)


def block_rows(one: Callable[..., Any], *arrays: Array) -> int:
    """Number of rows in a block: a power of two for which the largest array has at most `CACHE` or `ACCELERATOR` bytes."""
    rows = [jax.ShapeDtypeStruct((ROWS, *array.shape[1:]), array.dtype) for array in arrays]
    traced = jax.make_jaxpr(jax.vmap(one))(*rows)
    widest = max([1.0, *_row_bytes(traced.jaxpr)])
    limit = CACHE if jax.default_backend() == "cpu" else ACCELERATOR
    return 2 ** int(math.log2(max(1.0, limit / widest)))


def _row_bytes(jaxpr: Jaxpr) -> Iterator[float]:
    """Bytes per row of every result that grows with the rows, in a computation traced with `ROWS` rows."""
    for equation in jaxpr.eqns:
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(inner):
                yield from _row_bytes(inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner)
        for result in equation.outvars:
            shape = getattr(result.aval, "shape", ())
            if ROWS in shape:
                yield result.aval.size * result.aval.dtype.itemsize / ROWS  # type: ignore[attr-defined]


def _is_jaxpr(value: object) -> bool:
    return isinstance(value, Jaxpr | ClosedJaxpr)


def _divided(array: Array, blocks: int, size: int) -> Array:
    """Divide an array into blocks of rows. The last block is filled with the first rows."""
    missing = blocks * size - len(array)
    if missing:
        array = jnp.concatenate([array, jax.lax.stop_gradient(array[:missing])])
    return array.reshape(blocks, size, *array.shape[1:])
