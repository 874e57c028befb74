"""Tables in the whitened coordinates of an existing model, whose scalings fix the shapes."""

from collections.abc import Sequence
from math import prod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._blocks import over_rows
from .._checks import reshaping
from .._typing import Array, ArrayLike, ContextRows, Rows
from .containers import Handed, read
from .scaling import Scaling
from .tables import Sample, arranged, context_table, event_table, weight_table


def whitened(
    caller: str,
    scaling: Scaling,
    context_scaling: Any,
    data: Any,
    context: Any,
    weights: ArrayLike | None = None,
) -> Sample:
    """Whiten events and contexts, and drop the rows of weight zero.

    Raises:
        TypeError, ValueError: if a table fails its checks, or a shape is not that of the scaling.
    """
    states = whitened_events(caller, "data", scaling, data)
    contexts = whitened_contexts(caller, context_scaling, context, len(states), [read(caller, "data", data)])
    weighing = weight_table(caller, weights, len(states))
    if weighing is None:
        return Sample(states, contexts)
    return Sample(states, contexts, jnp.asarray(weighing, float)).take(jnp.flatnonzero(weighing))


def whitened_events(caller: str, name: str, scaling: Scaling, data: Any) -> Rows:
    """Whiten events, where `name` is the name of the argument in the errors."""
    return _whitened(scaling, event_rows(caller, name, scaling, data))


def event_rows(caller: str, name: str, scaling: Scaling, data: Any) -> np.ndarray:
    """Check events, and return them in the user's units in float64."""
    table = event_table(caller, arranged(caller, name, data, scaling.sites), scaling.support, name).rows
    _check_shape(caller, name, scaling, table)
    return table


def whitened_contexts(caller: str, scaling: Any, context: Any, rows: int, others: Sequence[Handed] = ()) -> ContextRows:
    """Whiten the contexts of `rows` rows. `others` are the other arguments with one entry per row."""
    if context is not None:
        context = arranged(caller, "context", context, scaling.sites)
    table = context_table(caller, context, rows, others, scaling.event_shape, scaling.has_absent_rows).rows
    _check_shape(caller, "context", scaling, table)
    return _whitened(scaling, table)


def _check_shape(caller: str, name: str, scaling: Scaling, table: np.ndarray) -> None:
    shape = scaling.event_shape
    if table.shape[1:] != shape:
        raise ValueError(
            f"{caller} expected `{name}` with shape (n, {', '.join(map(str, shape))}), as in training; got {table.shape}. The "
            f"columns must be those of the training data, in the same order. Fix: {_refit(name, table.shape, shape)}"
        )


def _refit(name: str, got: tuple[int, ...], shape: tuple[int, ...]) -> str:
    """Return the line that takes the model's columns from a table or, if it has too few columns, fits another model."""
    if shape == (0,):
        return f"{name} = None"
    rest = got[1:]
    if got[1:] != (0,) and (prod(rest) == prod(shape) or (len(rest) == len(shape) == 1 and rest[0] > shape[0])):
        return reshaping(name, got, shape)
    given = "data" if got[1:] == (0,) else "data, context" if name == "context" else name
    return f"density, report = fd.fit_flow(key, {given}); model = density.model"


def _whitened(scaling: Any, table: np.ndarray) -> Rows:
    if scaling.has_absent_rows:
        # Encoders are networks, which compute in the precision of the session.
        return whitened_rows(scaling, jnp.asarray(table, float))
    # Whiten in float64, as a fit does: float32 does not resolve rows near an edge or far from 0.
    with jax.enable_x64(True):
        states = jax.vmap(lambda scaling, row: scaling.whiten(row)[0], in_axes=(None, 0))(scaling, jnp.asarray(table))
        white = np.asarray(states)
    return jnp.asarray(white, float)


@eqx.filter_jit
def whitened_rows(scaling: Any, rows: Array) -> Rows:
    """Whiten rows by a scaling or an encoding, in the precision of the session."""
    return over_rows(lambda row: scaling.whiten(row)[0], rows)
