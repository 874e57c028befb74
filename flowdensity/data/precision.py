"""Check for columns that JAX's default dtype cannot represent, and lines of code that fix them.

Tables are checked and whitened in float64, but densities are evaluated in `jnp.result_type(float)`, which is float32 unless
`jax_enable_x64` is set.
"""

import math

import jax.numpy as jnp
import numpy as np
from numpyro.distributions import constraints

MAX_LOST = 0.5
"""Maximum share of a column's nonzero entries that may be too small for the dtype; these are treated as rows at an edge."""


def limits(support: constraints.Constraint) -> tuple[float, float]:
    """Smallest and largest absolute value that JAX's default dtype can handle on a support.

    On the real line, differences down to `eps` times the spread of a column, and multiples up to `1 / eps` times the spread, must
    be representable too. On other supports small numbers only need their full relative precision.
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
    """Check that JAX's default dtype can represent a table.

    Args:
        caller: public function named in the error.
        label: the user's expression for the table.
        values: finite rows, shape `(n, *event_shape)`.
        support: constraint of one event.
        put: line that sets another support, which replaces `{}`; None if the support is already the real line.

    Raises:
        ValueError: if an entry is too large, or most nonzero entries of a column are too small.
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
        f"{caller} expected `{label}` with numbers that {jnp.result_type(float)} can represent; got {place} with absolute values "
        f"from {sizes[:, column].min():.3g} to {sizes[:, column].max():.3g} and median {middle:.3g}. The usable range is "
        f"{small:.2g} to {large:.2g}. Change the unit, or take the logarithm and leave out the support. "
        f"Fix: {_rescaled(label if len(bad) == sizes.shape[1] else place, sizes[:, bad], small, large, put)}"
    )


def _rescaled(place: str, sizes: np.ndarray, small: float, large: float, put: str | None) -> str:
    """Return the line that changes the unit of some columns, or takes their logarithm if no unit is suitable."""
    unit = 10.0 ** round(math.log10(float(np.median(sizes[sizes > 0.0]))))
    units = sizes[sizes > 0.0] / unit
    if units.max() <= large and np.mean(units < small) <= MAX_LOST:
        return f"{place} = {place} / {unit:g}"
    line = f"{place} = numpy.log({place})"
    return line if put is None else f"{line}; {put.format('constraints.real')}"


def subtracted(label: str, rows: np.ndarray) -> str:
    """Return the line that subtracts an origin from a column: its median, to the power of ten above its spread."""
    middle = float(np.median(rows))
    spread = float(np.ptp(np.quantile(rows, [0.05, 0.95]))) or float(np.ptp(rows))
    unit = 10.0 ** math.ceil(math.log10(spread))
    return f"{label} -= {number(round(middle / unit) * unit)}"


def number(value: float) -> str:
    """Format a number as short as possible without changing its value."""
    if value == round(value) and abs(value) < 1e16:
        return str(round(value))
    return f"{value:g}" if float(f"{value:g}") == value else repr(float(value))


def column_labels(name: str, shape: tuple[int, ...]) -> list[str]:
    """Return the expressions for the columns of a table whose events have a shape, in the order of the flattened event."""
    if not shape:
        return [name]
    return [f"{name}[:, {', '.join(map(str, place))}]" for place in np.ndindex(*shape)]
