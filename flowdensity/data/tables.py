"""What comes in: tables of events and contexts, checked before any work is done."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from numpyro.distributions import constraints

from .._arrays import Fixes
from .._checks import real_array
from .._typing import Array, ArrayLike, ContextRows, Float, Int, Key, Rows
from . import lines
from .alignment import check_order
from .containers import Handed, read
from .orientation import warn_if_transposed
from .precision import check_range
from .sites import Sites, join, split
from .supports import check_support, free_size, joint
from .transforms.support import unconstrain

Named: TypeAlias = Mapping[str, ArrayLike]
Support: TypeAlias = constraints.Constraint | Sequence[constraints.Constraint] | Mapping[str, constraints.Constraint]
"""Of a whole event, one for each coordinate of a vector, or one for each named site."""


class Sample(NamedTuple):
    """A table on the device: whitened events, shape `(rows, dim)`, contexts, `(rows, context_dim)`, and weights, if unequal."""

    states: Rows
    contexts: ContextRows
    weights: Float[Array, " rows"] | None = None

    @property
    def effective(self) -> int:
        """How many rows of equal weight would say as much: the square of the sum of weights over the sum of their squares."""
        return len(self.states) if self.weights is None else effective_rows(np.asarray(self.weights))

    def draw(self, key: Key, count: int) -> "Sample":
        """`count` rows with replacement, as often as they weigh: the rows that come have no weights."""
        rows = len(self.states)
        if self.weights is None:
            return self.take(jr.randint(key, (count,), 0, rows))
        return self.take(jr.choice(key, rows, (count,), p=self.weights))._replace(weights=None)

    def take(self, rows: Int[Array, "*shape"]) -> "Sample":
        """The rows of these numbers, with their axes in front."""
        weights = None if self.weights is None else self.weights[rows]
        return Sample(self.states[rows], self.contexts[rows], weights)


class Table(NamedTuple):
    """Checked rows in the user's units.

    Attributes:
        rows: float64 array of shape `(n, *event_shape)`.
        support: numpyro constraint of one event.
        sites: names and shapes of what one event is made of; None where it has no names.
    """

    rows: np.ndarray
    support: constraints.Constraint
    sites: Sites | None


class _Part(NamedTuple):
    """What is checked together: values on one support, by the name that the user has for them."""

    label: str
    values: np.ndarray
    support: constraints.Constraint
    leave_out: Callable[[int | list[int] | None], str]
    """A line of code that leaves it out or, of vectors, some of their coordinates."""
    keep: Callable[[str], str]
    """A line of code that keeps the rows of a mask."""
    put: str
    """A line of code for another support, `{}`."""

    def inside(self, rows: np.ndarray, *, edge: bool = False) -> str:
        """A line of code that keeps the rows that are inside the support."""
        label, values, support, _, keep, put = self
        return lines.inside(label, values.shape, support, rows, keep, put, edge=edge)


def event_table(
    caller: str, data: Any, support: Support | None = None, name: str = "data", others: Sequence[Handed] = ()
) -> Table:
    """`data` as a table of n >= 2 rows: finite, varying and on its support.

    Args:
        caller: public function whose name the errors carry.
        data: one event per row, in whatever `read` takes.
        support: constraint of one event, one for each coordinate of a vector, or one for each named site (those left out
            are real); None for the real line.
        name: of the argument.
        others: arguments that have the same rows, which are to lose those that `data` has to lose.

    Raises:
        TypeError: if `data` cannot be cast to real numbers, or `support` is not made of constraints.
        ValueError: if it has fewer than two rows, values that are masked, not finite or off the support, or a constant column.
    """
    handed = read(caller, name, data)
    if handed.columns is None:
        rows = _rows(caller, handed, None, handed.array, others)
        whole, parts = _unnamed_parts(caller, handed, rows, constraints.real if support is None else support, others)
        table = Table(rows, whole, None)
    else:
        arrays = {name: _rows(caller, handed, name, values, others) for name, values in handed.columns.items()}
        table, parts = _named_parts(caller, handed, arrays, {} if support is None else support, others)
    for part in parts:
        _check_part(caller, part)
    return table


def context_table(
    caller: str, context: Any, rows: int, others: Sequence[Handed] = (), shape: tuple[int, ...] | None = None
) -> Table:
    """`context` as a table of as many rows as there are events; `None` becomes shape `(rows, 0)`.

    Args:
        caller: public function whose name the errors carry.
        context: one row per event, in whatever `read` takes.
        rows: number of events.
        others: arguments that have the same rows, the events first.
        shape: of one context, where a model has one already.

    Raises:
        TypeError: if it cannot be cast to real numbers.
        ValueError: if it has another number of rows, or values that are masked or not finite.
    """
    if context is None:
        return Table(np.zeros((rows, 0)), constraints.real, None)
    handed = read(caller, "context", context)
    arrays = {}
    for column, values in handed.parts().items():
        label = handed.label(column)
        array = arrays[column] = real_array(caller, label, values, handed.fixes(column, others))
        if array.ndim == 0 or len(array) != rows or array[0].size == 0:
            raise ValueError(
                f"{caller} expected `{label}` with shape ({rows}, ...), one row for each row of "
                f"`{others[0].name if others else 'data'}`; got {array.shape}. Row for row they belong together. "
                f"Fix: {lines.for_as_many_rows(handed, column, array.shape, rows, others, shape)}"
            )
        _check_finite(caller, handed, column, array, others)
        check_range(caller, label, array)
    if handed.columns is None:
        return Table(arrays[None], constraints.real, None)
    sites = Sites(tuple(handed.columns), tuple(array.shape[1:] for array in arrays.values()))
    return Table(join(list(arrays.values()), sites.shapes), constraints.real, sites)


def arranged(caller: str, name: str, values: Any, sites: Sites | None) -> Handed:
    """`values` as an array, also if they are named: by the sites of a model that is there already, in its order."""
    handed = read(caller, name, values)
    if handed.columns is None:
        return handed
    if sites is not None:
        with jax.enable_x64(True):
            return handed._replace(array=np.asarray(sites.pack(caller, handed.columns, name), np.float64), columns=None)
    if handed.array is None:
        raise ValueError(
            f"{caller} expected `{name}` as an array, since the model was learned without names; got the names "
            f"{list(handed.columns)}. Fix: {name} = numpy.stack([{name}[site] for site in {name}], axis=-1)"
        )
    return handed._replace(columns=None)


def weight_table(caller: str, weights: Any, rows: int, others: Sequence[Handed] = ()) -> np.ndarray | None:
    """`weights` of the rows, float64 and of sum 1, or None where they are not given.

    Raises:
        TypeError: if they cannot be cast to real numbers.
        ValueError: if they are not one for each row, finite, at least 0, and above 0 twice; or are masked.
    """
    if weights is None:
        return None
    handed = read(caller, "weights", weights)
    values = handed.columns if handed.array is None else handed.array
    table = real_array(caller, "weights", values, Fixes("weights = numpy.ma.filled(weights, 0.0)"))
    if table.shape != (rows,):
        raise ValueError(
            f"{caller} expected `weights` with shape ({rows},), one for each row of `data`; got {table.shape}. "
            f"Fix: {lines.for_weights(table.shape, rows)}"
        )
    _check_finite(caller, handed, None, table, others)
    if (table < 0.0).any() or np.count_nonzero(table) < 2:
        raise ValueError(
            f"{caller} expected `weights` of at least 0, and two above it; got a least weight of {table.min():.3g} and "
            f"{np.count_nonzero(table)} that are not zero. Without weights all rows count alike. Fix: weights = None"
        )
    return table / table.sum()


def fit_tables(
    caller: str, data: Any, context: Any, support: Support | None, weights: ArrayLike | None
) -> tuple[Table, Table, np.ndarray | None, list[Handed]]:
    """Events, contexts and weights that a model is learned from (`event_table`, `context_table`, `weight_table`), without the
    rows that weigh nothing; and the arguments that they were read of.

    Warns if there are so few events that rows and columns may be exchanged.

    Raises:
        TypeError, ValueError: as those; or if a column, of the contexts too, is constant in the rows that are left.
    """
    given = {"data": data, "context": context, "weights": weights}
    handed = {
        name: read(caller, name, values) for name, values in given.items() if name == "data" or values is not None
    }

    def others(name: str) -> list[Handed]:
        return [each for each in handed.values() if each.name != name]

    check_order(caller, given, {name: handed[name].labels if name in handed else None for name in given})
    events = event_table(caller, handed["data"], support, others=others("data"))
    contexts = context_table(caller, handed.get("context"), len(events.rows), others("context"))
    weighing = weight_table(caller, handed.get("weights"), len(events.rows), others("weights"))
    if weighing is not None and not weighing.all():
        kept = np.flatnonzero(weighing)
        events, contexts = (table._replace(rows=table.rows[kept]) for table in (events, contexts))
        weighing = weighing[kept]
        free = unconstrain(events.rows, events.support)
        _check_all_vary(caller, handed["data"], events, free, " where `weights` are above 0")
    if context is not None:
        _check_all_vary(caller, handed["context"], contexts, contexts.rows)
    warn_if_transposed(caller, handed["data"], events.rows, events.sites)
    return events, contexts, weighing, list(handed.values())


def effective_rows(weights: np.ndarray) -> int:
    """Kish's effective sample size of rows of unequal weights."""
    return max(2, round(float(np.sum(weights)) ** 2 / float(np.sum(np.square(weights)))))


def _unnamed_parts(
    caller: str, handed: Handed, rows: np.ndarray, support: Support, others: Sequence[Handed]
) -> tuple[constraints.Constraint, list[_Part]]:
    keep = partial(handed.keeping, others=others)
    if isinstance(support, Mapping):
        raise ValueError(
            f"{caller} expected `support` as a constraint, or one for each coordinate, since `data` has no names; got a dict "
            f"with {list(support)}. Fix: {lines.naming(handed.name, rows.shape, support)}"
        )
    if not isinstance(support, list | tuple):
        support = check_support(caller, "support", support)
        return support, [_Part(handed.name, rows, support, partial(handed.without, None), keep, "support = {}")]
    if rows.ndim != 2 or len(support) != rows.shape[1]:
        raise ValueError(
            f"{caller} expected `support` with one constraint for each coordinate of a vector; got {len(support)} for "
            f"events of shape {rows.shape[1:]}. Fix: support = "
            f"{f'[constraints.real] * {rows.shape[1]}' if rows.ndim == 2 else 'constraints.real'}"
        )
    labels = [f"{handed.name}[:, {column}]" for column in range(len(support))]
    puts = [f"support = [*support[:{i}], {{}}, *support[{i + 1}:]]" for i in range(len(support))]
    each = [
        check_support(caller, f"support[{i}]", part, put, label)
        for i, (part, put, label) in enumerate(zip(support, puts, labels, strict=True))
    ]
    return joint(each, ((),) * len(each)), [
        _Part(label, rows[:, i], part, partial(_without_support, handed, i), keep, put)
        for i, (part, put, label) in enumerate(zip(each, puts, labels, strict=True))
    ]


def _without_support(handed: Handed, column: int, _: int | list[int] | None) -> str:
    return f"{handed.without(None, column)}; support = [*support[:{column}], *support[{column + 1}:]]"


def _named_parts(
    caller: str, handed: Handed, arrays: Mapping[str, np.ndarray], support: Support, others: Sequence[Handed]
) -> tuple[Table, list[_Part]]:
    if isinstance(support, constraints.Constraint):
        support = dict.fromkeys(arrays, support)
    elif isinstance(support, Mapping):
        # Labels of columns may be numbers.
        support = {str(key): value for key, value in support.items()}
    if not isinstance(support, Mapping) or not set(support) <= set(arrays):
        got = list(support) if isinstance(support, Mapping) else type(support).__name__
        raise ValueError(
            f"{caller} expected `support` as a dict from names among {list(arrays)} to constraints; got {got}. "
            f"Fix: support = {lines.support_by_name(support, list(arrays))}"
        )
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(
            f"{caller} expected as many rows of each site of `data`; got {counts}. Each row is one event, of all sites. "
            f"Fix: data = {{name: numpy.asarray(data[name])[: {min(counts.values())}] for name in data}}"
        )
    keep, parts = partial(handed.keeping, others=others), []
    for name, array in arrays.items():
        label, put = handed.label(name), f"support = {{{{**(support or {{{{}}}}), {name!r}: {{}}}}}}"
        own = check_support(caller, f"support[{name!r}]", support.get(name, constraints.real), put, label)
        parts.append(_Part(label, array, own, partial(handed.without, name), keep, put))
    sites = Sites(tuple(arrays), tuple(array.shape[1:] for array in arrays.values()))
    whole = joint([part.support for part in parts], sites.shapes)
    return Table(join(list(arrays.values()), sites.shapes), whole, sites), parts


def _rows(caller: str, handed: Handed, column: str | None, values: Any, others: Sequence[Handed]) -> np.ndarray:
    label = handed.label(column)
    table = real_array(caller, label, values, handed.fixes(column, others))
    if table.ndim == 0 or len(table) < 2 or table[0].size == 0:
        raise ValueError(
            f"{caller} expected `{label}` with shape (n, ...), n >= 2; got {table.shape}. A density is learned from many "
            f"events, one in each row. Fix: {lines.for_few_rows(handed, label, table.shape)}"
        )
    _check_finite(caller, handed, column, table, others)
    return table


def _check_part(caller: str, part: _Part) -> None:
    label, values, support = part[:3]
    event_dim = support.event_dim
    if values.ndim - 1 < event_dim:
        raise ValueError(
            f"{caller} expected `{label}` with events of at least {event_dim} axes, as the support {support} has; got "
            f"shape {values.shape}. Fix: {part.put.format('constraints.real')}"
        )
    check_range(caller, label, values, support, None if support is constraints.real else part.put)
    inside = np.asarray(support(values))
    event = values.shape[values.ndim - event_dim :]
    if free_size(support, event) < prod(event):
        # Draws made in float32 lie on a surface to the precision of float32.
        inside = inside | np.asarray(support(values.astype(np.float32)))
    inside = np.broadcast_to(inside, values.shape[: values.ndim - event_dim])
    if not inside.all():
        first = tuple(int(i) for i in np.argwhere(~inside)[0])
        raise ValueError(
            f"{caller} expected `{label}` on the support {support}; got {values[first]!s} at index {first}, and "
            f"{np.sum(~inside)} such entries in all. These rows can be left out, or the support is a wider one. "
            f"Fix: {part.inside(np.all(inside.reshape(len(values), -1), axis=1))}"
        )
    # The ends of an interval that is closed belong to it, but are nowhere on the real line.
    free = unconstrain(values, support)
    off = np.any(~np.isfinite(free.reshape(len(values), -1)), axis=1)
    if off.any():
        first = int(np.argmax(off))
        raise ValueError(
            f"{caller} expected `{label}` inside the support {support}, on whose edge a density has no value; got "
            f"{values[first]!s} at index {first}, and {off.sum()} such rows in all. They can be left out or modeled apart, "
            f"or the support is a wider one. Fix: {part.inside(~off, edge=True)}"
        )
    _check_varies(caller, label, values, free, part.leave_out)


def _check_finite(caller: str, handed: Handed, column: str | None, table: np.ndarray, others: Sequence[Handed]) -> None:
    bad = ~np.isfinite(table)
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        rows = int(np.any(bad.reshape(len(table), -1), axis=1).sum())
        raise ValueError(
            f"{caller} expected `{handed.label(column)}` with finite values; got {table[first]} at index {first}, and {rows} "
            f"such rows of {len(table)}. Fix: {handed.finite_rows(others, nan_alone=not np.isinf(table).any())}"
        )


def _check_all_vary(caller: str, handed: Handed, table: Table, free: np.ndarray, where: str = "") -> None:
    """Raise a ValueError if a column of a table, whose rows are `free` on the real line, is constant."""
    sites = table.sites
    if sites is None or free.shape != table.rows.shape:
        _check_varies(caller, handed.name, table.rows, free, partial(handed.without, None), where)
        return
    for name, values, each in zip(sites.names, split(table.rows, sites.shapes), split(free, sites.shapes), strict=True):
        _check_varies(caller, handed.label(name), values, each, partial(handed.without, name), where)


def _check_varies(
    caller: str,
    name: str,
    values: np.ndarray,
    free: np.ndarray,
    leave_out: Callable[[int | list[int] | None], str],
    where: str = "",
) -> None:
    """Raise a ValueError if a column of values, which are `free` on the real line, where they are whitened, is constant."""
    columns = free.reshape(len(free), -1)
    # A column whose spread is lost when JAX's default dtype reads it is constant to the model.
    dtype = np.dtype(jnp.result_type(float))
    sizes, spreads = np.abs(columns).max(axis=0), np.ptp(columns, axis=0)
    constant = spreads <= 4.0 * np.finfo(dtype).eps * sizes
    if constant.any():
        column = int(np.argmax(constant))
        others = lines.without_constants(name, values, free, np.flatnonzero(constant).tolist(), leave_out)
        shifted = lines.without_origin(name, values, columns, column)
        reason = "An offset takes its digits" if shifted else "Of a constant nothing can be learned"
        raise ValueError(
            f"{caller} expected columns of `{name}` that vary; got a constant column, {column} of {columns.shape[1]}, to {dtype} "
            f"precision{where}. {reason}. Fix: {shifted or others}"
        )
