"""Lines of code that fix a table, for the error messages of `tables`."""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from numpyro.distributions import constraints

from .containers import Handed
from .precision import column_labels, subtracted
from .supports import code_of


def for_few_rows(handed: Handed, label: str, shape: tuple[int, ...]) -> str:
    """Fix for a single row, which may be a column, a chain or a point mass, or for events without coordinates."""
    if 0 in shape[1:]:
        return "dist.Unit(0.0)"
    if handed.lines.turned is not None and len(shape) > 1 and shape[0] == 1:
        return handed.lines.turned
    return f"dist.Delta(jax.numpy.asarray({label}, float))"


def for_as_many_rows(
    handed: Handed,
    column: str | None,
    got: Sequence[int],
    rows: int,
    others: Sequence[Handed],
    shape: tuple[int, ...] | None,
) -> str:
    """Fix for a wrong number of contexts: repeat a single context, or keep the rows that have one."""
    label = handed.label(column)
    if not got and shape is not None:
        return f"{label} = numpy.broadcast_to({label}, {(rows, *shape)})"
    if not got or 0 in got:
        return handed.without(column)
    if len(got) > 1 and got[1] == rows:
        return f"{label} = numpy.transpose({label})"
    if got[0] > rows:
        return f"{label} = {label}[:{rows}]"
    named = f"{{key: numpy.asarray(context[key])[:{got[0]}] for key in context}}"
    own = "" if column is None else f"context = {named}; "
    return own + (others[0].keeping(f"numpy.arange({rows}) < {got[0]}", others[1:]) if others else "context = None")


def for_weights(got: tuple[int, ...], rows: int) -> str:
    """Fix for weights of the wrong shape: flatten them if their number is right, and drop them otherwise."""
    return "weights = numpy.ravel(weights)" if prod(got) == rows else "weights = None"


def without_constants(
    name: str,
    values: np.ndarray,
    free: np.ndarray,
    constant: list[int],
    leave_out: Callable[[int | list[int] | None], str],
) -> str:
    """Fix for constant coordinates of vectors, arrays or numbers: drop them."""
    if free.shape != values.shape or prod(values.shape[1:]) == len(constant):
        return leave_out(None)
    if values.ndim == 2:
        return leave_out(constant[0] if len(constant) == 1 else constant)
    return f"{name} = numpy.delete(numpy.reshape({name}, ({len(values)}, -1)), {constant}, axis=1)"


def without_origin(name: str, values: np.ndarray, columns: np.ndarray, column: int) -> str | None:
    """Fix for a column whose offset hides its variation: subtract the offset; None if it is constant in float64 too."""
    rows = values.reshape(len(values), -1)
    if rows.shape != columns.shape:
        return None
    if np.ptp(rows[:, column]) <= 4.0 * np.finfo(np.float64).eps * np.abs(rows[:, column]).max():
        return None
    return subtracted(column_labels(name, values.shape[1:])[column], rows[:, column])


def naming(name: str, shape: tuple[int, ...], support: Mapping[str, constraints.Constraint]) -> str:
    """Fix for a dict of supports with an array: name the columns if the numbers match, or drop the supports."""
    if len(shape) == 2 and len(support) == shape[1]:
        return f"{name} = dict(zip(support, numpy.transpose({name})))"
    return "support = constraints.real"


def support_by_name(support: Any, names: list[str]) -> str:
    """Code for the supports of the existing names."""
    if isinstance(support, Mapping):
        return f"{{name: support[name] for name in support if name in {names}}}"
    as_many = isinstance(support, list | tuple) and len(support) == len(names)
    return f"dict(zip({names}, support))" if as_many else "None"


def inside(
    label: str,
    shape: tuple[int, ...],
    support: constraints.Constraint,
    inside: np.ndarray,
    keep: Callable[[str], str],
    put: str,
    *,
    edge: bool = False,
) -> str:
    """Fix for rows outside a support: drop them or, if fewer than two rows remain, use the real line as the support.

    Args:
        label: code for the values.
        shape: shape of the values.
        support: numpyro constraint of one row.
        inside: mask of the rows inside the support.
        keep: function that returns the line that keeps the rows of a mask.
        put: line that sets another support, which replaces `{}`.
        edge: whether the other rows lie on the edge of the support.
    """
    if np.count_nonzero(inside) < 2:
        return put.format("constraints.real")
    # A fit finds rows on an edge in float64, which a short expression cannot reproduce, so these rows are listed by index.
    code = None if edge else code_of(support)
    values = f"numpy.reshape(numpy.asarray({label}, float), {shape})"
    if code is None:
        return keep(f"~numpy.isin(numpy.arange({len(inside)}), {np.flatnonzero(~inside).tolist()})")
    return keep(f"numpy.reshape({code}({values}), ({len(inside)}, -1)).all(axis=1)")
