"""Input and output of the pre-fit checks: the columns of a table, and findings."""

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
"""Maximum number of columns named in a message."""


class Finding(NamedTuple):
    """Result of a check, as the parts of a message.

    Attributes:
        expected: property that a table should have.
        got: columns, values and counts.
        cause: why this matters, and what the user should know before fixing it.
        fix: one runnable line, if there is one.
    """

    expected: str
    got: str
    cause: str
    fix: str

    def text(self, caller: str) -> str:
        """Return the message, which names the public function that was called."""
        return f"{caller} expected {self.expected}; got {self.got}. {self.cause}. Fix: {self.fix}"


class Columns:
    """Columns of the table in an argument: their values as a matrix, and the expressions that select them in the user's code.

    Args:
        name: name of the argument, `data` or `context`.
        table: checked rows.
        arguments: all arguments with one entry per row, as read from the call, in the order of the signature.
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
        """Mask of the columns whose support has one unconstrained coordinate per entry, unlike a simplex."""
        return self._of_parts(lambda part, shape: free_size(part, shape) == math.prod(shape))

    @cached_property
    def line(self) -> np.ndarray:
        """Values on the real line for `separate` columns, and in the user's units for others, shape `(n, columns)`."""
        sizes = [(free_size(part, shape), math.prod(shape)) for part, shape in self._parts]
        free = np.split(self.free, np.cumsum([size for size, _ in sizes])[:-1], axis=1)
        own = np.split(self.rows, np.cumsum([entries for _, entries in sizes])[:-1], axis=1)
        pairs = zip(free, own, strict=True)
        return np.concatenate([line if line.shape == rows.shape else rows for line, rows in pairs], axis=1)

    @cached_property
    def real(self) -> np.ndarray:
        """Mask of the columns whose support is the real line."""
        return self._of_parts(lambda part, _: getattr(part, "base_constraint", part) is constraints.real)

    @cached_property
    def supported(self) -> dict[str | int | None, np.ndarray]:
        """Columns of each entry of the argument `support`, by its key or index; None is the key for a single constraint."""
        if self.table.sites is not None:
            ends = np.cumsum([math.prod(shape) for shape in self.table.sites.shapes])
            return dict(zip(self.table.sites.names, np.split(np.arange(self.count), ends[:-1]), strict=True))
        if self.table.rows.ndim == 2 and self.count > 1:
            return {column: np.array([column]) for column in range(self.count)}
        return {None: np.arange(self.count)}

    @property
    def handed(self) -> Handed:
        """The argument from which the table was read."""
        return next(each for each in self.arguments if each.name == self.name)

    @cached_property
    def labels(self) -> list[str]:
        """The user's expressions for the columns, such as `data[:, 1]` and `data['theta'][:, 2]`."""
        return [label for site, shape in self._sites for label in column_labels(self.handed.label(site), shape)]

    @cached_property
    def code(self) -> list[str]:
        """Runnable expressions for the columns as one-dimensional numpy arrays."""
        return [code for site, shape in self._sites for code in column_labels(self.handed.code(site, shape), shape)]

    @property
    def code_of_sites(self) -> list[str]:
        """Runnable expressions for the sites as numpy arrays with one event in each row."""
        return [self.handed.code(site, shape) for site, shape in self._sites]

    @property
    def _sites(self) -> list[tuple[str | None, tuple[int, ...]]]:
        sites = self.table.sites
        return [(None, self.table.rows.shape[1:])] if sites is None else list(zip(*sites, strict=True))

    def listed(self, columns: np.ndarray | list[int]) -> str:
        """Name the first of some columns, and give the number of the others."""
        more = len(columns) - MAX_NAMED_COLUMNS
        named = ", ".join(self.labels[column] for column in columns[:MAX_NAMED_COLUMNS])
        return f"{named} and {more} more" if more > 0 else named

    def keeping(self, condition: str) -> str:
        """Return the line that keeps the rows that satisfy a condition, in all arguments."""
        first, *others = self.arguments
        return first.keeping(condition, others)

    @property
    def vary(self) -> bool:
        """True if no column is constant."""
        return len(self.rows) > 1 and bool(np.all(np.ptp(self.rows, axis=0) > 0.0))

    def only(self, rows: np.ndarray) -> Self:
        """Return the same columns with a subset of the rows."""
        return type(self)(self.name, self.table._replace(rows=self.table.rows[rows]), self.arguments)

    def _of_parts(self, holds: Callable[[constraints.Constraint, tuple[int, ...]], bool]) -> np.ndarray:
        """Mask of the columns whose part of the support satisfies a predicate, shape `(columns,)`."""
        return np.concatenate([np.full(math.prod(shape), holds(part, shape)) for part, shape in self._parts])

    @property
    def _parts(self) -> list[tuple[constraints.Constraint, tuple[int, ...]]]:
        support = self.table.support
        if not isinstance(support, joint):
            return [(support, self.table.rows.shape[1:])]
        return list(zip(support.parts, support.shapes, strict=True))
