"""A module as (arrays, hashable rest), and back.

numpyro flattens a distribution into data fields, which JAX may trace, and auxiliary fields, which it
hashes. `equinox.partition` leaves a static half that is itself a tree and need not hash; the pair used
here is the flat list of leaves and a tuple.
"""

from collections.abc import Hashable
from typing import Any, TypeAlias

import equinox as eqx
import jax

from ._typing import Array

Arrays: TypeAlias = tuple[Array | None, ...]


def split(tree: Any) -> tuple[Arrays, Hashable]:
    """Split a pytree into its array leaves (`None` elsewhere) and a hashable description of the rest."""
    leaves, structure = jax.tree.flatten(tree)
    arrays = tuple(leaf if eqx.is_array(leaf) else None for leaf in leaves)
    others = tuple(None if eqx.is_array(leaf) else leaf for leaf in leaves)
    return arrays, (structure, others)


def merge(arrays: Arrays, rest: Hashable) -> Any:
    """Undo `split`; the arrays may meanwhile have become tracers, or anything else."""
    structure, others = rest  # type: ignore[misc]
    leaves = [other if array is None else array for array, other in zip(arrays, others, strict=True)]
    return jax.tree.unflatten(structure, leaves)
