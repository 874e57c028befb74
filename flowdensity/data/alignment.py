"""Check of row labels, such as a pandas index, or the chain and the number of each draw.

Rows of different arguments are paired by position. If two arguments, or two columns, have the same labels in different orders,
pairing by position would combine the wrong rows.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from .draws import CHAINS


def labels_of(array: Any, draws: Sequence[str]) -> Any:
    """Return the labels that the draws of an xarray object have as rows; None if they have no labels.

    Args:
        array: a `DataArray`.
        draws: the dimensions that index its draws, in order.
    """
    if len(draws) == 2:
        levels = [array.indexes[dim] if dim in array.indexes else range(array.sizes[dim]) for dim in draws]
        return pd.MultiIndex.from_product(levels, names=draws)
    labels = array.indexes.get(draws[0]) if draws else None
    if labels is not None and set(labels.names) == set(CHAINS):
        return labels.reorder_levels(list(CHAINS))
    return labels


def is_shuffled(first: Any, second: Any) -> bool:
    """Return whether two indices have the same labels in different orders; False if one is None."""
    if first is None or second is None or len(first) != len(second) or first.equals(second):
        return False
    return set(first) == set(second)


def check_order(caller: str, given: Mapping[str, Any], labels: Mapping[str, Any]) -> None:
    """Check that no argument has the row labels of the first argument in a different order.

    Args:
        caller: public function named in the error.
        given: the arguments by name, as the user passed them.
        labels: row labels of each argument, or None.

    Raises:
        ValueError: if an argument has the same labels in a different order.
    """
    first, *others = given
    for name in others:
        if is_shuffled(labels[first], labels[name]):
            raise ValueError(
                f"{caller} expected `{name}` with its rows in the order of `{first}`, since rows are paired by their position; "
                f"got the first labels {list(labels[name][:3])}, but those of `{first}` are {list(labels[first][:3])}. "
                f"Fix: {_aligned(name, given[name], first, given[first])}"
            )


def _aligned(name: str, values: Any, first: str, others: Any) -> str:
    if hasattr(values, "loc") and hasattr(others, "index") and hasattr(values, "index"):
        return f"{name} = {name}.loc[{first}.index]"
    return f"{name} = {name}.unstack()" if hasattr(values, "unstack") else f"{name} = {name}.to_numpy()"
