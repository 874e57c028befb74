"""Columns of a table as the checks before a fit read them, and the findings that these checks return."""

import math
from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np
from numpyro.distributions import constraints

from .precision import column_labels
from .scaling import unconstrain
from .supports import free_size, joint
from .tables import Table

MAX_NAMED_COLUMNS = 3
"""A message writes out at most this many columns."""


class Finding(NamedTuple):
    """What a check found, as the parts of one sentence each.

    Attributes:
        expected: property that a table should have.
        got: columns, values and counts.
        cause: why that matters, and what a reader should know before mending it.
        fix: one runnable line where there is one.
    """

    expected: str
    got: str
    cause: str
    fix: str

    def text(self, caller: str) -> str:
        """The message, which names the public function that was called."""
        return f"{caller} expected {self.expected}; got {self.got}. {self.cause}. Fix: {self.fix}"


class Columns:
    """A table as a matrix, with the expressions by which the user addresses its columns.

    Args:
        name: name of the argument, `data` or `context`.
        table: checked rows.
        arguments: all arguments with one entry for each row, in the order of the signature; True for those with names.
    """

    def __init__(self, name: str, table: Table, arguments: dict[str, bool]):
        self.name = name
        self.table = table
        self.arguments = arguments

    @property
    def count(self) -> int:
        """Number of columns."""
        return self.rows.shape[1]

    @cached_property
    def rows(self) -> np.ndarray:
        """Values in the user's units, shape `(n, columns)`."""
        return self.table.rows.reshape(len(self.table.rows), -1)

    @cached_property
    def free(self) -> np.ndarray:
        """Values on the real line, shape `(n, free size)`."""
        return unconstrain(self.table.rows, self.table.support).reshape(len(self.rows), -1)

    @cached_property
    def separate(self) -> np.ndarray:
        """Which columns lie on a support that has one real number for each entry, unlike a simplex."""
        return self._of_parts(lambda part, shape: free_size(part, shape) == math.prod(shape))

    @cached_property
    def line(self) -> np.ndarray:
        """Values on the real line where `separate` holds, and in the user's units elsewhere, shape `(n, columns)`."""
        sizes = [(free_size(part, shape), math.prod(shape)) for part, shape in self._parts]
        free = np.split(self.free, np.cumsum([size for size, _ in sizes])[:-1], axis=1)
        own = np.split(self.rows, np.cumsum([entries for _, entries in sizes])[:-1], axis=1)
        pairs = zip(free, own, strict=True)
        return np.concatenate([line if line.shape == rows.shape else rows for line, rows in pairs], axis=1)

    @cached_property
    def real(self) -> np.ndarray:
        """Which columns have no bounds."""
        return self._of_parts(lambda part, _: getattr(part, "base_constraint", part) is constraints.real)

    @cached_property
    def supported(self) -> dict[str | int | None, np.ndarray]:
        """Columns that share an entry of the argument `support`, by its key or index; None where it is a single constraint."""
        if self.table.sites is not None:
            ends = np.cumsum([math.prod(shape) for shape in self.table.sites.shapes])
            return dict(zip(self.table.sites.names, np.split(np.arange(self.count), ends[:-1]), strict=True))
        if self.table.rows.ndim == 2 and self.count > 1:
            return {column: np.array([column]) for column in range(self.count)}
        return {None: np.arange(self.count)}

    @cached_property
    def labels(self) -> list[str]:
        """Runnable expressions for the columns, such as `data[:, 1]` and `data['theta'][:, 2]`."""
        if self.table.sites is None:
            return column_labels(self.name, self.table.rows.shape[1:])
        pairs = zip(self.table.sites.names, self.table.sites.shapes, strict=True)
        return [label for site, shape in pairs for label in column_labels(f"{self.name}[{site!r}]", shape)]

    def listed(self, columns: np.ndarray | list[int]) -> str:
        """The first of some columns by name, and the number of others."""
        more = len(columns) - MAX_NAMED_COLUMNS
        named = ", ".join(self.labels[column] for column in columns[:MAX_NAMED_COLUMNS])
        return f"{named} and {more} more" if more > 0 else named

    def keeping(self, condition: str) -> str:
        """A line of code that keeps the rows for which an expression holds, in every argument that has them."""
        if self.arguments == {"data": False}:
            return f"data = data[{condition}]"
        kept = [
            f"{{name: values[keep] for name, values in {argument}.items()}}" if named else f"{argument}[keep]"
            for argument, named in self.arguments.items()
        ]
        return f"keep = {condition}; {', '.join(self.arguments)} = {', '.join(kept)}"

    @property
    def vary(self) -> bool:
        """Whether no column is constant."""
        return len(self.rows) > 1 and bool(np.all(np.ptp(self.rows, axis=0) > 0.0))

    def only(self, rows: np.ndarray) -> Self:
        """The same columns with some of the rows."""
        return type(self)(self.name, self.table._replace(rows=self.table.rows[rows]), self.arguments)

    def _of_parts(self, holds: Callable[[constraints.Constraint, tuple[int, ...]], bool]) -> np.ndarray:
        """Whether a predicate holds for the part that each column belongs to, shape `(columns,)`."""
        return np.concatenate([np.full(math.prod(shape), holds(part, shape)) for part, shape in self._parts])

    @property
    def _parts(self) -> list[tuple[constraints.Constraint, tuple[int, ...]]]:
        support = self.table.support
        if not isinstance(support, joint):
            return [(support, self.table.rows.shape[1:])]
        return list(zip(support.parts, support.shapes, strict=True))
