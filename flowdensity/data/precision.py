"""Numbers as JAX's default dtype reads them: columns that it cannot hold, and lines of code that mend them.

Tables are checked and whitened in float64, but densities are evaluated in `jnp.result_type(float)`, which is float32 unless
`jax_enable_x64` is set.
"""

import math

import jax.numpy as jnp
import numpy as np
from numpyro.distributions import constraints

MAX_LOST = 0.5
"""Share of the rows of a column that may be too small for the dtype; fewer lie at the edge of a support."""


def limits(support: constraints.Constraint) -> tuple[float, float]:
    """Least and greatest size of numbers that JAX's default dtype can work with on a support.

    On the real line, differences down to `eps` of the spread of a column and multiples of it up to `1 / eps` have to be numbers
    too. Elsewhere it is the relative size of small numbers that counts.
    """
    info = np.finfo(np.dtype(jnp.result_type(float)))
    small = float(info.tiny) / (
        float(info.eps) if getattr(support, "base_constraint", support) is constraints.real else 1.0
    )
    return small, float(info.max) * float(info.eps)


def check_range(
    caller: str,
    label: str,
    values: np.ndarray,
    support: constraints.Constraint = constraints.real,
    put: str | None = None,
) -> None:
    """Check that JAX's default dtype holds a table.

    Args:
        caller: public function whose name the error carries.
        label: expression by which the user addresses the table.
        values: finite rows, shape `(n, *event_shape)`.
        support: constraint of one event.
        put: a line of code for another support, `{}`.

    Raises:
        ValueError: if an entry is too large, or most of the entries of a column that are not 0 are too small.
    """
    sizes = np.abs(values).reshape(len(values), -1)
    small, large = limits(support)
    lost = np.sum((sizes > 0.0) & (sizes < small), axis=0) > MAX_LOST * np.count_nonzero(sizes, axis=0)
    bad = np.flatnonzero(lost | (sizes.max(axis=0) > large))
    if not len(bad):
        return
    column = int(bad[0])
    middle = float(np.median(sizes[sizes[:, column] > 0.0, column]))
    place = column_labels(label, values.shape[1:])[column]
    raise ValueError(
        f"{caller} expected `{label}` with numbers that {jnp.result_type(float)} holds; got {place} with values from "
        f"{sizes[:, column].min():.3g} to {sizes[:, column].max():.3g} in size, {middle:.3g} in the middle. "
        f"Sizes from {small:.2g} to {large:.2g} are held. Change the unit, or take the logarithm and leave out the support. "
        f"Fix: {_rescaled(label if len(bad) == sizes.shape[1] else place, sizes[:, bad], small, large, put)}"
    )


def _rescaled(place: str, sizes: np.ndarray, small: float, large: float, put: str | None) -> str:
    """A line of code that changes the unit of columns of some sizes, or takes the logarithm where no unit suits them."""
    unit = 10.0 ** round(math.log10(float(np.median(sizes[sizes > 0.0]))))
    units = sizes[sizes > 0.0] / unit
    if units.max() <= large and np.mean(units < small) <= MAX_LOST:
        return f"{place} = {place} / {unit:g}"
    line = f"{place} = numpy.log({place})"
    return line if put is None else f"{line}; {put.format('constraints.real')}"


def subtracted(label: str, rows: np.ndarray) -> str:
    """A line of code that subtracts the origin of a column: its middle row, rounded to about its spread."""
    middle = float(np.median(rows))
    spread = float(np.ptp(np.quantile(rows, [0.05, 0.95]))) or float(np.ptp(rows))
    unit = 10.0 ** math.ceil(math.log10(spread))
    return f"{label} -= {number(round(middle / unit) * unit)}"


def number(value: float) -> str:
    """A number as short as it can be written without changing it."""
    if value == round(value) and abs(value) < 1e16:
        return str(round(value))
    return f"{value:g}" if float(f"{value:g}") == value else repr(float(value))


def column_labels(name: str, shape: tuple[int, ...]) -> list[str]:
    """Expressions for the columns of a table of events of a shape, in the order of the flattened event."""
    if not shape:
        return [name]
    return [f"{name}[:, {', '.join(map(str, place))}]" for place in np.ndindex(*shape)]
