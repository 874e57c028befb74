"""Tables of events, contexts and weights, which are checked before any other work."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
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
from .statistics import kinds
from .supports import check_support, joint
from .transforms.support import unconstrain
from .value_checks import Part, check_finite, check_part, check_varies

Named: TypeAlias = Mapping[str, ArrayLike]
"""Arrays by name."""
Support: TypeAlias = constraints.Constraint | Sequence[constraints.Constraint] | Mapping[str, constraints.Constraint]
"""A constraint for the whole event, one for each coordinate of a vector, or one for each named site."""


class Sample(NamedTuple):
    """A whitened table on the device.

    Attributes:
        states: whitened events, shape `(rows, dim)`.
        contexts: whitened contexts, shape `(rows, context_dim)`.
        weights: weights of the rows; None if they are equal.
    """

    states: Rows
    contexts: ContextRows
    weights: Float[Array, " rows"] | None = None

    @property
    def effective(self) -> int:
        """Kish's effective sample size, which is the number of rows if the weights are equal."""
        return len(self.states) if self.weights is None else effective_rows(np.asarray(self.weights))

    def draw(self, key: Key, count: int) -> "Sample":
        """Draw `count` rows with replacement, in proportion to their weights; the result has no weights."""
        rows = len(self.states)
        if self.weights is None:
            return self.take(jr.randint(key, (count,), 0, rows))
        return self.take(jr.choice(key, rows, (count,), p=self.weights))._replace(weights=None)

    def take(self, rows: Int[Array, "*shape"]) -> "Sample":
        """Take the rows whose indices are in `rows`; the axes of `rows` become the leading axes."""
        weights = None if self.weights is None else self.weights[rows]
        return Sample(self.states[rows], self.contexts[rows], weights)

    def kinds(self) -> tuple[np.ndarray, np.ndarray]:
        """Find the distinct rows: the index of the first row of each kind, shape `(kinds,)`, and each row's kind, `(rows,)`."""
        # Absent rows of a context are NaN, which would not equal one another.
        contexts = np.nan_to_num(np.asarray(self.contexts), nan=np.inf)
        rows = np.concatenate([np.asarray(self.states), contexts], axis=-1)
        return kinds(rows.reshape(-1, rows.shape[-1]))


class Table(NamedTuple):
    """Checked rows in the user's units.

    Attributes:
        rows: float64 array of shape `(n, *event_shape)`.
        support: numpyro constraint of one event.
        sites: names and shapes of the values in one event; None if they have no names.
    """

    rows: np.ndarray
    support: constraints.Constraint
    sites: Sites | None


def event_table(
    caller: str, data: Any, support: Support | None = None, name: str = "data", others: Sequence[Handed] = ()
) -> Table:
    """Check events: at least two rows, finite, not constant and on their support.

    Args:
        caller: public function named in the errors.
        data: one event per row, in any container that `read` accepts.
        support: constraint of one event, one for each coordinate of a vector, or one for each named site (other sites are
            real); None for the real line.
        name: name of the argument.
        others: arguments with the same rows, from which a fix drops the same rows.

    Raises:
        TypeError: if `data` cannot be cast to real numbers, or `support` does not consist of constraints.
        ValueError: if there are fewer than two rows, values that are masked, not finite or outside the support, or a constant
            column.
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
        check_part(caller, part)
    return table


def context_table(
    caller: str,
    context: Any,
    rows: int,
    others: Sequence[Handed] = (),
    shape: tuple[int, ...] | None = None,
    absent: bool = False,
) -> Table:
    """Check contexts, one for each event; `None` becomes a table of shape `(rows, 0)`.

    Args:
        caller: public function named in the errors.
        context: one row per event, in any container that `read` accepts.
        rows: number of events.
        others: arguments with the same rows, the events first.
        shape: shape of one context, if an existing model fixes it.
        absent: whether rows of a context may be absent, with NaN in all their values.

    Raises:
        TypeError: if `context` cannot be cast to real numbers.
        ValueError: if the number of rows differs, or values are masked or not finite.
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
                f"`{others[0].name if others else 'data'}`; got {array.shape}. Each event needs its own context. "
                f"Fix: {lines.for_as_many_rows(handed, column, array.shape, rows, others, shape)}"
            )
        present = _without_absent_rows(array) if absent else array
        check_finite(caller, handed, column, present, others)
        check_range(caller, label, present)
    if handed.columns is None:
        return Table(arrays[None], constraints.real, None)
    sites = Sites(tuple(handed.columns), tuple(array.shape[1:] for array in arrays.values()))
    return Table(join(list(arrays.values()), sites.shapes), constraints.real, sites)


def _without_absent_rows(contexts: np.ndarray) -> np.ndarray:
    """Contexts, shape `(n, rows, ...)`, with 0 in the place of rows whose values are all NaN."""
    if contexts.ndim < 2:
        return contexts
    gone = np.isnan(contexts).all(axis=tuple(range(2, contexts.ndim)), keepdims=True)
    return np.where(gone, 0.0, contexts)


def arranged(caller: str, name: str, values: Any, sites: Sites | None) -> Handed:
    """Convert events or contexts to one array for an existing model.

    Named values are packed in the order of the model's sites.
    """
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
    """Check the weights of the rows and normalize their sum to 1, in float64; None if there are no weights.

    Raises:
        TypeError: if the weights cannot be cast to real numbers.
        ValueError: if the number of weights differs from the number of rows, if a weight is masked, infinite, NaN or
            negative, or if fewer than two weights are positive.
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
    check_finite(caller, handed, None, table, others)
    if (table < 0.0).any() or np.count_nonzero(table) < 2:
        raise ValueError(
            f"{caller} expected nonnegative `weights`, at least two of them positive; got a smallest weight of {table.min():.3g} "
            f"and {np.count_nonzero(table)} nonzero weights. Without weights, all rows count equally. Fix: weights = None"
        )
    return table / table.sum()


def fit_tables(
    caller: str, data: Any, context: Any, support: Support | None, weights: ArrayLike | None, absent: bool = False
) -> tuple[Table, Table, np.ndarray | None, list[Handed]]:
    """Check the tables of a fit with `event_table`, `context_table` and `weight_table`, and drop the rows of weight zero.

    Warns if there are so few events that rows and columns may be exchanged. With `absent`, rows of a context may be NaN, and its
    columns may be constant.

    Returns:
        Events, contexts, weights, and the arguments as they were read.

    Raises:
        TypeError, ValueError: as the three functions do; also if a column of events or contexts is constant in the rows with
            positive weight.
    """
    given = {"data": data, "context": context, "weights": weights}
    handed = {
        name: read(caller, name, values) for name, values in given.items() if name == "data" or values is not None
    }

    def others(name: str) -> list[Handed]:
        return [each for each in handed.values() if each.name != name]

    check_order(caller, given, {name: handed[name].labels if name in handed else None for name in given})
    events = event_table(caller, handed["data"], support, others=others("data"))
    contexts = context_table(caller, handed.get("context"), len(events.rows), others("context"), absent=absent)
    weighing = weight_table(caller, handed.get("weights"), len(events.rows), others("weights"))
    if weighing is not None and not weighing.all():
        kept = np.flatnonzero(weighing)
        events, contexts = (table._replace(rows=table.rows[kept]) for table in (events, contexts))
        weighing = weighing[kept]
        free = unconstrain(events.rows, events.support)
        _check_all_vary(caller, handed["data"], events, free, " in the rows with positive `weights`")
    if context is not None and not absent:
        _check_all_vary(caller, handed["context"], contexts, contexts.rows)
    warn_if_transposed(caller, handed["data"], events.rows, events.sites)
    return events, contexts, weighing, list(handed.values())


def effective_rows(weights: np.ndarray) -> int:
    """Kish's effective sample size: the squared sum of the weights divided by the sum of their squares, at least 2."""
    return max(2, round(float(np.sum(weights)) ** 2 / float(np.sum(np.square(weights)))))


def _unnamed_parts(
    caller: str, handed: Handed, rows: np.ndarray, support: Support, others: Sequence[Handed]
) -> tuple[constraints.Constraint, list[Part]]:
    keep = partial(handed.keeping, others=others)
    if isinstance(support, Mapping):
        raise ValueError(
            f"{caller} expected `support` as a constraint, or one for each coordinate, since `data` has no names; got a dict "
            f"with {list(support)}. Fix: {lines.naming(handed.name, rows.shape, support)}"
        )
    if not isinstance(support, list | tuple):
        support = check_support(caller, "support", support)
        return support, [Part(handed.name, rows, support, partial(handed.without, None), keep, "support = {}")]
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
        Part(label, rows[:, i], part, partial(_without_support, handed, i), keep, put)
        for i, (part, put, label) in enumerate(zip(each, puts, labels, strict=True))
    ]


def _without_support(handed: Handed, column: int, _: int | list[int] | None) -> str:
    return f"{handed.without(None, column)}; support = [*support[:{column}], *support[{column + 1}:]]"


def _named_parts(
    caller: str, handed: Handed, arrays: Mapping[str, np.ndarray], support: Support, others: Sequence[Handed]
) -> tuple[Table, list[Part]]:
    if isinstance(support, constraints.Constraint):
        support = dict.fromkeys(arrays, support)
    elif isinstance(support, Mapping):
        # The column labels of a DataFrame may be numbers, so compare them as strings.
        support = {str(key): value for key, value in support.items()}
    if not isinstance(support, Mapping) or not set(support) <= set(arrays):
        got = list(support) if isinstance(support, Mapping) else type(support).__name__
        raise ValueError(
            f"{caller} expected `support` as a dict that maps names in {list(arrays)} to constraints; got {got}. "
            f"Fix: support = {lines.support_by_name(support, list(arrays))}"
        )
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(
            f"{caller} expected the same number of rows for each site of `data`; got {counts}. Each row is one event. "
            f"Fix: data = {{name: numpy.asarray(data[name])[: {min(counts.values())}] for name in data}}"
        )
    keep, parts = partial(handed.keeping, others=others), []
    for name, array in arrays.items():
        label, put = handed.label(name), f"support = {{{{**(support or {{{{}}}}), {name!r}: {{}}}}}}"
        own = check_support(caller, f"support[{name!r}]", support.get(name, constraints.real), put, label)
        parts.append(Part(label, array, own, partial(handed.without, name), keep, put))
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
    check_finite(caller, handed, column, table, others)
    return table


def _check_all_vary(caller: str, handed: Handed, table: Table, free: np.ndarray, where: str = "") -> None:
    """Raise a ValueError if a column is constant; `free` is the table mapped to the real line."""
    sites = table.sites
    if sites is None or free.shape != table.rows.shape:
        check_varies(caller, handed.name, table.rows, free, partial(handed.without, None), where)
        return
    for name, values, each in zip(sites.names, split(table.rows, sites.shapes), split(free, sites.shapes), strict=True):
        check_varies(caller, handed.label(name), values, each, partial(handed.without, name), where)
