"""Labels of rows: a pandas index, or the chain and the number of each draw.

Rows are paired by their position. Where two arguments, or two columns, label the same rows and have them in another order, that
would pair each with the wrong one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from .draws import CHAINS


def labels_of(array: Any, draws: Sequence[str]) -> Any:
    """The labels of an xarray object's draws, once these are rows; None where they have none.

    Args:
        array: a `DataArray`.
        draws: its dimensions that count draws, in their order.
    """
    if len(draws) == 2:
        levels = [array.indexes[dim] if dim in array.indexes else range(array.sizes[dim]) for dim in draws]
        return pd.MultiIndex.from_product(levels, names=draws)
    labels = array.indexes.get(draws[0]) if draws else None
    if labels is not None and set(labels.names) == set(CHAINS):
        return labels.reorder_levels(list(CHAINS))
    return labels


def is_shuffled(first: Any, second: Any) -> bool:
    """Whether two indices, or None, have the same labels in another order."""
    if first is None or second is None or len(first) != len(second) or first.equals(second):
        return False
    return set(first) == set(second)


def check_order(caller: str, given: Mapping[str, Any], labels: Mapping[str, Any]) -> None:
    """Check that arguments do not have the same rows in another order.

    Args:
        caller: public function whose name the error carries.
        given: the arguments by name, as they were handed over.
        labels: of the rows of each, or None.

    Raises:
        ValueError: if they do.
    """
    first, *others = given
    for name in others:
        if is_shuffled(labels[first], labels[name]):
            raise ValueError(
                f"{caller} expected `{name}` with its rows in the order of `{first}`, since rows are paired by their position; "
                f"got the labels {list(labels[name][:3])} first, and {list(labels[first][:3])} in `{first}`. "
                f"Fix: {_aligned(name, given[name], first, given[first])}"
            )


def _aligned(name: str, values: Any, first: str, others: Any) -> str:
    if hasattr(values, "loc") and hasattr(others, "index") and hasattr(values, "index"):
        return f"{name} = {name}.loc[{first}.index]"
    return f"{name} = {name}.unstack()" if hasattr(values, "unstack") else f"{name} = {name}.to_numpy()"
