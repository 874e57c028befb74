"""What comes in: tables of events and contexts, checked before any work is done."""

from typing import NamedTuple

import jax.random as jr
import numpy as np
from numpyro.distributions import constraints

from .._typing import Array, ArrayLike, ContextRows, Int, Key, Rows
from .scaling import unconstrain


class Sample(NamedTuple):
    """A table on the device: whitened events, shape `(rows, dim)`, and contexts, shape `(rows, context_dim)`."""

    states: Rows
    contexts: ContextRows

    def draw(self, key: Key, count: int) -> "Sample":
        """`count` rows with replacement."""
        return self.take(jr.randint(key, (count,), 0, len(self.states)))

    def take(self, rows: Int[Array, "*shape"]) -> "Sample":
        """The rows of these numbers, with their axes in front."""
        return Sample(self.states[rows], self.contexts[rows])


def event_table(caller: str, data: ArrayLike, support: constraints.Constraint = constraints.real) -> np.ndarray:
    """`data` as a float64 array of shape `(n, *event_shape)`, n >= 2, finite, varying and on its support.

    Args:
        caller: public function whose name the errors carry.
        data: one event per row.
        support: numpyro constraint of one event.

    Raises:
        TypeError: if `data` cannot be cast to real numbers.
        ValueError: if it has fewer than two rows, values that are not finite or off the support, or a constant column.
    """
    table = _real_array(caller, "data", data)
    if table.ndim == 0 or len(table) < 2 or table[0].size == 0:
        raise ValueError(
            f"{caller} expected `data` with shape (n, ...), n >= 2; got {table.shape}. A density is learned from many "
            "events, one in each row. Fix: data = numpy.stack(events)"
        )
    _check_finite(caller, "data", table)
    event_dim = support.event_dim
    if table.ndim - 1 < event_dim:
        raise ValueError(
            f"{caller} expected `data` with events of at least {event_dim} axes, as the support {support} has; got "
            f"shape {table.shape}. Fix: put one event in each row, or choose a support of single numbers, such as "
            "numpyro.distributions.constraints.positive"
        )
    inside = np.broadcast_to(np.asarray(support(table)), table.shape[: table.ndim - event_dim])
    if not inside.all():
        first = tuple(int(i) for i in np.argwhere(~inside)[0])
        raise ValueError(
            f"{caller} expected `data` on the support {support}; got {table[first]!s} at index {first}, and "
            f"{np.sum(~inside)} such entries in all. Fix: data = data[numpy.all(support(data), axis=-1)], or a wider support"
        )
    # Whether a column varies is asked where it will be whitened: on the real line.
    _check_varies(caller, "data", unconstrain(table, support).reshape(len(table), -1))
    return table


def context_table(caller: str, context: ArrayLike | None, rows: int) -> np.ndarray:
    """`context` as a float64 array of shape `(rows, *context_shape)`; `None` becomes shape `(rows, 0)`.

    Raises:
        TypeError: if it cannot be cast to real numbers.
        ValueError: if it has another number of rows, values that are not finite, or a constant column.
    """
    if context is None:
        return np.zeros((rows, 0))
    table = _real_array(caller, "context", context)
    if table.ndim == 0 or len(table) != rows or table[0].size == 0:
        raise ValueError(
            f"{caller} expected `context` with shape ({rows}, ...), one row for each row of `data`; got {table.shape}. "
            "Fix: context = context[: len(data)]"
        )
    _check_finite(caller, "context", table)
    _check_varies(caller, "context", table.reshape(rows, -1))
    return table


def _real_array(caller: str, name: str, values: ArrayLike) -> np.ndarray:
    try:
        raw = np.asarray(values)
    except ValueError as error:
        raise ValueError(
            f"{caller} expected `{name}` as an array with rows of one shape; got rows of several. "
            f"Fix: {name} = numpy.stack(rows), with every row of the same length"
        ) from error
    if raw.dtype.kind not in "fiub":
        raise TypeError(
            f"{caller} expected `{name}` as an array of real numbers; got {type(values).__name__} of dtype {raw.dtype}. "
            f"Fix: {name} = numpy.asarray({name}, float)"
        )
    return raw.astype(np.float64)


def _check_finite(caller: str, name: str, table: np.ndarray) -> None:
    bad = ~np.isfinite(table)
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        rows = int(np.any(bad.reshape(len(table), -1), axis=1).sum())
        raise ValueError(
            f"{caller} expected `{name}` with finite values; got {table[first]} at index {first}, and {rows} such rows "
            f"of {len(table)}. Fix: {name} = {name}[numpy.isfinite({name}).reshape(len({name}), -1).all(axis=1)]"
        )


def _check_varies(caller: str, name: str, columns: np.ndarray) -> None:
    # A column whose spread is lost when it is rounded to float32 is constant to the model.
    resolution = np.finfo(np.float32).eps * np.abs(columns).max(axis=0)
    constant = np.ptp(columns, axis=0) <= 4.0 * resolution
    if constant.any():
        column = int(np.argmax(constant))
        raise ValueError(
            f"{caller} expected columns of `{name}` that vary; got a constant column, {column} of {columns.shape[1]} "
            f"(every value is {columns[0, column]:.6g} to float32 precision). A constant has no density. Fix: "
            f"{name} = numpy.delete({name}.reshape(len({name}), -1), {column}, axis=1)"
        )
