"""Checks of the values of a table: finite, on their support, not on its edges, and not constant."""

from collections.abc import Callable, Sequence
from math import prod
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from numpyro.distributions import constraints

from . import lines
from .containers import Handed
from .precision import check_range
from .supports import free_size
from .transforms.support import unconstrain


class Part(NamedTuple):
    """Values on one support, which are checked together; `label` is the user's expression for them."""

    label: str
    values: np.ndarray
    support: constraints.Constraint
    leave_out: Callable[[int | list[int] | None], str]
    """Returns the line that drops the values, or some coordinates of vectors."""
    keep: Callable[[str], str]
    """Returns the line that keeps the rows of a mask."""
    put: str
    """Line that sets another support, which replaces `{}`."""

    def inside(self, rows: np.ndarray, *, edge: bool = False) -> str:
        """Return the line that keeps the rows inside the support."""
        label, values, support, _, keep, put = self
        return lines.inside(label, values.shape, support, rows, keep, put, edge=edge)


def check_part(caller: str, part: Part) -> None:
    """Raise a ValueError unless values have the axes of their support, lie inside it, and vary in JAX's default dtype."""
    label, values, support = part[:3]
    event_dim = support.event_dim
    if values.ndim - 1 < event_dim:
        raise ValueError(
            f"{caller} expected `{label}` with events of at least {event_dim} axes, which the support {support} needs; got "
            f"shape {values.shape}. Fix: {part.put.format('constraints.real')}"
        )
    check_range(caller, label, values, support, None if support is constraints.real else part.put)
    inside = np.asarray(support(values))
    event = values.shape[values.ndim - event_dim :]
    if free_size(support, event) < prod(event):
        # Draws that were computed in float32 lie on a surface, such as a simplex, only to the precision of float32.
        inside = inside | np.asarray(support(values.astype(np.float32)))
    inside = np.broadcast_to(inside, values.shape[: values.ndim - event_dim])
    if not inside.all():
        first = tuple(int(i) for i in np.argwhere(~inside)[0])
        raise ValueError(
            f"{caller} expected `{label}` on the support {support}; got {values[first]!s} at index {first}, and "
            f"{np.sum(~inside)} such entries in all. Leave these rows out, or declare a wider support. "
            f"Fix: {part.inside(np.all(inside.reshape(len(values), -1), axis=1))}"
        )
    # The endpoints of a closed interval belong to the support, but the bijection maps them to infinity.
    free = unconstrain(values, support)
    off = np.any(~np.isfinite(free.reshape(len(values), -1)), axis=1)
    if off.any():
        first = int(np.argmax(off))
        raise ValueError(
            f"{caller} expected `{label}` strictly inside the support {support}, since a density is not defined on its edge; got "
            f"{values[first]!s} at index {first}, and {off.sum()} such rows in all. Leave them out, model them "
            f"separately, or declare a wider support. Fix: {part.inside(~off, edge=True)}"
        )
    check_varies(caller, label, values, free, part.leave_out)


def check_finite(caller: str, handed: Handed, column: str | None, table: np.ndarray, others: Sequence[Handed]) -> None:
    """Raise a ValueError unless a column is finite; `others` are the arguments with the same rows."""
    bad = ~np.isfinite(table)
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        rows = int(np.any(bad.reshape(len(table), -1), axis=1).sum())
        raise ValueError(
            f"{caller} expected `{handed.label(column)}` with finite values; got {table[first]} at index {first}, and {rows} "
            f"such rows of {len(table)}. Fix: {handed.finite_rows(others, nan_alone=not np.isinf(table).any())}"
        )


def check_varies(
    caller: str,
    name: str,
    values: np.ndarray,
    free: np.ndarray,
    leave_out: Callable[[int | list[int] | None], str],
    where: str = "",
) -> None:
    """Raise a ValueError if a column is constant; `free` are the values on the real line, where they are whitened."""
    columns = free.reshape(len(free), -1)
    # The model evaluates columns in JAX's default dtype, which loses a small spread around a large offset.
    dtype = np.dtype(jnp.result_type(float))
    sizes, spreads = np.abs(columns).max(axis=0), np.ptp(columns, axis=0)
    constant = spreads <= 4.0 * np.finfo(dtype).eps * sizes
    if constant.any():
        column = int(np.argmax(constant))
        others = lines.without_constants(name, values, free, np.flatnonzero(constant).tolist(), leave_out)
        shifted = lines.without_origin(name, values, columns, column)
        reason = "Its offset hides its variation" if shifted else "Nothing can be learned from a constant"
        raise ValueError(
            f"{caller} expected columns of `{name}` that vary; got column {column} of {columns.shape[1]}, which is constant to "
            f"{dtype} precision{where}. {reason}. Fix: {shifted or others}"
        )
