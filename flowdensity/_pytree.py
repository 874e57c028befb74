"""A module as (arrays, hashable rest), and back.

numpyro flattens a distribution into data fields, which JAX may trace, and auxiliary fields, which it
hashes. `equinox.partition` leaves a static half that is itself a tree and need not hash; the pair used
here is the flat list of leaves and what is left of the tree without them.
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
    """What a pytree is beside its arrays: hashable, comparable, and fit for pickling.

    Attributes:
        structure: of the tree.
        others: its leaves, None where there is an array.
        axes: number of axes of each array, None where there is none; copies of the arrays have more.
    """

    structure: Any
    others: tuple[Any, ...]
    axes: tuple[int | None, ...]

    # The structure of an equinox module does not survive pickling; the modules themselves do.

    def __reduce__(self) -> tuple[Any, ...]:
        return _rest, (jax.tree.unflatten(self.structure, [_Leaf(other) for other in self.others]), self.axes)


class _Leaf:
    """A leaf of whatever kind, for JAX a leaf."""

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
    """The largest number of leading axes that an array has gained since `split`, as under `jax.vmap` or `jax.tree.map`."""
    pairs = zip(arrays, rest.axes, strict=True)
    return max((np.ndim(array) - axes for array, axes in pairs if array is not None and axes is not None), default=0)


def in_session(tree: Tree) -> Tree:
    """A pytree with its arrays in the precision of the session: of 64 bits in a session with 32, they are cut to 32.

    JAX itself does so with every array that it makes, but one that was made before the switch keeps its type, and does not mix
    with others. Arrays of fewer bits stay as they are.
    """
    return jax.tree.map(_in_session, tree)


def _in_session(leaf: Any) -> Any:
    if not eqx.is_array(leaf) or jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
        return leaf
    dtype = jax.dtypes.canonicalize_dtype(leaf.dtype)
    return leaf if dtype == leaf.dtype else leaf.astype(dtype)


def without_copies(tree: Any, axes: int) -> Any:
    """The first of the copies along the leading `axes` of every array, such as numpyro's `scan` makes for each step."""
    return jax.tree.map(lambda leaf: leaf[(0,) * axes] if eqx.is_array(leaf) else leaf, tree) if axes > 0 else tree


def merge(arrays: Arrays, rest: Rest) -> Any:
    """Undo `split`; the arrays may meanwhile have become tracers, or anything else."""
    leaves = [other if array is None else array for array, other in zip(arrays, rest.others, strict=True)]
    return jax.tree.unflatten(rest.structure, leaves)
