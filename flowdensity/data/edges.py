"""Check for rows that lie inside their support in float64, but on its edge after conversion to JAX's default dtype."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from numpyro.distributions import constraints

from .columns import Columns, Finding
from .interior import interior_point
from .singular import MAX_TIED_ROWS, MAX_TIED_SHARE
from .sites import split
from .tables import Table


class _Part(NamedTuple):
    """Rows on one constraint of numbers or vectors, with the user's expressions for the rows and for the constraint."""

    label: str
    support_label: str
    rows: np.ndarray
    support: Any


class _Cure(NamedTuple):
    """A change of coordinates as a sentence and as a line of code, and the share of rows that it leaves at an edge."""

    cause: str
    line: str
    lost: float


def rows_at_edges(columns: Columns) -> Finding | None:
    """Find parts of a table with many rows that are rounded to an edge of their support.

    The threshold is that of ties (`MAX_TIED_SHARE`, `MAX_TIED_ROWS`). The fix subtracts the edge if that reduces the share of
    such rows by more than `MAX_TIED_SHARE`, because floating-point numbers are densest at 0. Otherwise it maps the rows to the
    real line.
    """
    found = [(part, lost) for part in _parts(columns.table) if (lost := _lost(part.rows, part.support)) > _most(part)]
    if not found:
        return None
    dtype = jnp.result_type(float)
    cures = [_cure(part, lost) for part, lost in found]
    (part, lost), cure = found[0], cures[0]
    more = f", and also rows of {', '.join(each.label for each, _ in found[1:])}" if len(found) > 1 else ""
    return Finding(
        f"rows of `{part.label}` that {dtype} can distinguish from the edges of {part.support}",
        f"{lost:.1%} of the rows rounded to an edge{more}",
        f"Their log density is that of the nearest {dtype} number inside the support. {cure.cause}",
        "; ".join(each.line for each in cures),
    )


def _most(part: _Part) -> float:
    return max(MAX_TIED_SHARE, MAX_TIED_ROWS / len(part.rows))


def _cure(part: _Part, lost: float) -> _Cure:
    shifts = [_shifted(part, edge) for edge in _edges(part.support)]
    best = min((cure.lost for cure in shifts), default=lost)
    # The lower edge comes first, so it is chosen if both edges are about equally good.
    return next(
        (cure for cure in shifts if cure.lost < min(lost - MAX_TIED_SHARE, best + MAX_TIED_SHARE)), _on_the_line(part)
    )


def _edges(support: Any) -> list[Any]:
    """Return the finite edges of a constraint of numbers."""
    return [getattr(support, name) for name in ("lower_bound", "upper_bound") if hasattr(support, name)]


def _shifted(part: _Part, edge: Any) -> _Cure:
    moved, name = _moved(part.support, edge)
    line = f"{part.label} = {part.label} - {_code(edge)}; {part.support_label} = {name}"
    return _Cure("Floating-point numbers are densest near 0", line, _lost(part.rows - np.asarray(edge, float), moved))


def _moved(support: Any, edge: Any) -> tuple[constraints.Constraint, str]:
    """The constraint after an edge has been subtracted, and the code for it."""
    ends = [np.asarray(end, float) - np.asarray(edge, float) for end in _edges(support)]
    kind = next(
        kind for kind in ("interval", "greater_than", "less_than") if isinstance(support, getattr(constraints, kind))
    )
    name = f"constraints.{kind}({', '.join(map(_code, ends))})"
    return getattr(constraints, kind)(*ends), name


def _on_the_line(part: _Part) -> _Cure:
    """The map of a part to unconstrained coordinates, which have no edge."""
    label, support = part.label, part.support
    ends = _edges(support)
    if isinstance(support, constraints.interval):
        width = _code(np.asarray(ends[1], float) - np.asarray(ends[0], float))
        name, value = "logits", f"scipy.special.logit(({label} - {_code(ends[0])}) / {width})"
    elif isinstance(support, constraints.greater_than):
        name, value = (
            "logarithms",
            f"numpy.log({label} - {_code(ends[0])})" if np.any(ends[0]) else f"numpy.log({label})",
        )
    elif isinstance(support, constraints.less_than):
        name, value = "logarithms", f"numpy.log({_code(ends[0])} - {label})"
    else:
        name, value = "log ratios", f"numpy.log({label}[..., :-1] / {label}[..., -1:])"
    line = f"{label} = {value}; {part.support_label} = constraints.real"
    return _Cure(f"The support of their {name} has no edge", line, 0.0)


def _code(number: Any) -> str:
    return repr(float(number)) if np.ndim(number) == 0 else f"numpy.array({np.asarray(number, float).tolist()})"


def _lost(rows: np.ndarray, support: Any) -> float:
    """Largest share, over the columns, of rows that JAX's default dtype rounds to an edge."""
    read = jnp.asarray(rows, float)
    moved = np.asarray(interior_point(support, read) != read)
    return float(moved.reshape(len(rows), -1).mean(axis=0).max())


def _parts(table: Table) -> list[_Part]:
    """Return the parts of a table whose support has an edge that a fix can avoid."""
    support: Any = table.support
    shapes = getattr(support, "shapes", None)
    if shapes is None:
        parts = [_Part("data", "support", table.rows, support)]
    else:
        pieces = split(table.rows, shapes)
        names = _names(table, len(shapes))
        parts = [_Part(*each, rows, part) for each, rows, part in zip(names, pieces, support.parts, strict=True)]
    plain = [part._replace(support=getattr(part.support, "base_constraint", part.support)) for part in parts]
    return [part for part in plain if _edges(part.support) or part.support is constraints.simplex]


def _names(table: Table, count: int) -> list[tuple[str, str]]:
    """Return the user's expressions for the values of each part and for its support."""
    if table.sites is None:
        return [(f"data[:, {column}]", f"support[{column}]") for column in range(count)]
    return [(f"data[{name!r}]", f"support[{name!r}]") for name in table.sites.names]
