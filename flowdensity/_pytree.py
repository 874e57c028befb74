"""Splitting a pytree into arrays and a hashable rest, and merging them again.

numpyro flattens a distribution into data fields, which JAX may trace, and auxiliary fields, which it hashes. The static half that
`equinox.partition` returns is itself a tree and may not be hashable. The pair used here is the flat list of arrays, and the
structure of the tree with the other leaves.
"""

from typing import Any, NamedTuple, TypeAlias, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ._typing import Array

Arrays: TypeAlias = tuple[Array | None, ...]
Tree = TypeVar("Tree")


class Rest(NamedTuple):
    """A pytree without its arrays: hashable, comparable and picklable.

    Attributes:
        structure: structure of the tree.
        others: leaves of the tree, with None in place of arrays.
        axes: number of axes of each array, with None in place of other leaves; copies of the arrays have more axes.
    """

    structure: Any
    others: tuple[Any, ...]
    axes: tuple[int | None, ...]

    # The structure of an equinox module cannot be pickled, but a module itself can.

    def __reduce__(self) -> tuple[Any, ...]:
        return _rest, (jax.tree.unflatten(self.structure, [_Leaf(other) for other in self.others]), self.axes)


class _Leaf:
    """Wrapper that makes any value a leaf for JAX."""

    def __init__(self, value: Any):
        self.value = value


def _rest(tree: Any, axes: tuple[int | None, ...]) -> Rest:
    leaves, structure = jax.tree.flatten(tree)
    return Rest(structure, tuple(leaf.value for leaf in leaves), axes)


def split(tree: Any) -> tuple[Arrays, Rest]:
    """Split a pytree into its array leaves (`None` elsewhere) and a hashable description of the rest."""
    leaves, structure = jax.tree.flatten(tree)
    arrays = tuple(leaf if eqx.is_array(leaf) else None for leaf in leaves)
    others = tuple(None if eqx.is_array(leaf) else leaf for leaf in leaves)
    return arrays, Rest(structure, others, tuple(leaf.ndim if eqx.is_array(leaf) else None for leaf in leaves))


def copied_axes(arrays: Arrays, rest: Rest) -> int:
    """Largest number of leading axes that an array has gained since `split`, for example by `jax.vmap` or `jax.tree.map`."""
    pairs = zip(arrays, rest.axes, strict=True)
    return max((np.ndim(array) - axes for array, axes in pairs if array is not None and axes is not None), default=0)


def in_session(tree: Tree) -> Tree:
    """Convert the arrays of a pytree to the precision of the session. In a 32-bit session, 64-bit arrays are cut to 32 bits.

    JAX does this to every array that it creates. An array that was created before the precision was switched
    keeps its dtype, and cannot be mixed with arrays created afterwards. Arrays with fewer bits are left unchanged.
    """
    return jax.tree.map(_in_session, tree)


def _in_session(leaf: Any) -> Any:
    if not eqx.is_array(leaf) or jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
        return leaf
    dtype = jax.dtypes.canonicalize_dtype(leaf.dtype)
    return leaf if dtype == leaf.dtype else leaf.astype(dtype)


def without_copies(tree: Any, axes: int) -> Any:
    """Return the first of the copies along the leading `axes` of every array, such as numpyro's `scan` makes for each step."""
    return jax.tree.map(lambda leaf: leaf[(0,) * axes] if eqx.is_array(leaf) else leaf, tree) if axes > 0 else tree


def merge(arrays: Arrays, rest: Rest) -> Any:
    """Undo `split`. The arrays may have become tracers or other objects in the meantime."""
    leaves = [other if array is None else array for array, other in zip(arrays, rest.others, strict=True)]
    return jax.tree.unflatten(rest.structure, leaves)
