"""Columns of a table as the checks before a fit read them, and the findings that these checks return."""

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np
from numpyro.distributions import constraints

from .containers import Handed
from .precision import column_labels
from .supports import free_size, joint
from .tables import Table
from .transforms.support import unconstrain

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
        arguments: all arguments with one entry for each row, as they were read, in the order of the signature.
    """

    def __init__(self, name: str, table: Table, arguments: Sequence[Handed]):
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

    @property
    def handed(self) -> Handed:
        """What the table was read of."""
        return next(each for each in self.arguments if each.name == self.name)

    @cached_property
    def labels(self) -> list[str]:
        """What the user calls the columns, such as `data[:, 1]` and `data['theta'][:, 2]`."""
        return [label for site, shape in self._sites for label in column_labels(self.handed.label(site), shape)]

    @cached_property
    def code(self) -> list[str]:
        """Runnable expressions for the columns as numpy arrays of one axis."""
        return [code for site, shape in self._sites for code in column_labels(self.handed.code(site, shape), shape)]

    @property
    def code_of_sites(self) -> list[str]:
        """Runnable expressions for numpy arrays of the sites, with one event in each row."""
        return [self.handed.code(site, shape) for site, shape in self._sites]

    @property
    def _sites(self) -> list[tuple[str | None, tuple[int, ...]]]:
        sites = self.table.sites
        return [(None, self.table.rows.shape[1:])] if sites is None else list(zip(*sites, strict=True))

    def listed(self, columns: np.ndarray | list[int]) -> str:
        """The first of some columns by name, and the number of others."""
        more = len(columns) - MAX_NAMED_COLUMNS
        named = ", ".join(self.labels[column] for column in columns[:MAX_NAMED_COLUMNS])
        return f"{named} and {more} more" if more > 0 else named

    def keeping(self, condition: str) -> str:
        """A line of code that keeps the rows for which an expression holds, in every argument that has them."""
        first, *others = self.arguments
        return first.keeping(condition, others)

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
