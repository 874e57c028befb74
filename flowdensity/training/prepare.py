"""From what the user hands over to what is trained: checks first, then whitened tables and a model at the fitted Gaussian."""

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._checks import reshaping
from .._pytree import in_session
from .._typing import ArrayLike, ContextRows, Key, Rows, Scalar
from ..data.containers import Handed, read
from ..data.scaling import Scaling, fit_scaling, standardize
from ..data.supports import free_size
from ..data.tables import (
    Sample,
    Support,
    arranged,
    context_table,
    effective_rows,
    event_table,
    fit_tables,
    weight_table,
)
from ..data.warned import warn_about_tables
from ..models.flows import AbstractProbabilityFlow
from ..models.networks import AbstractNetwork, ResidualMLP
from .training import FEW_ROWS

REACH_FACTOR = 1.5
"""Reach of a model, in multiples of the largest whitened radius in the data."""


class Parts(NamedTuple):
    """What a model is made of, beside what is particular to its kind; with the table that it will be trained on."""

    table: Sample
    network: AbstractNetwork
    scaling: Scaling
    context_scaling: Scaling
    reach: Scalar
    context_reach: Scalar | None

    @property
    def shared(self) -> dict[str, Any]:
        """The arguments that models of every kind take."""
        return {name: value for name, value in self._asdict().items() if name != "table"}


def prepare(
    caller: str,
    key: Key,
    data: Any,
    context: Any,
    support: Support | None,
    weights: ArrayLike | None,
    network: AbstractNetwork | None,
) -> Parts:
    """Check the arguments that all fits from the start share, whiten the table and make the network, if there is none.

    Raises:
        TypeError, ValueError: if one is unusable.
    """
    network = in_session(network)
    events, contexts, weighing, handed = fit_tables(caller, data, context, support, weights)
    rows = len(events.rows) if weighing is None else effective_rows(weighing)
    dim = free_size(events.support, events.rows.shape[1:])
    context_dim = prod(contexts.rows.shape[1:])
    if network is None:
        network = default_network(key, rows, dim, context_dim)
    elif (network.dim, network.context_dim) != (dim, context_dim):
        raise ValueError(
            f"{caller} expected a `network` for {dim} dimensions and {context_dim} of context; got one for {network.dim} and "
            f"{network.context_dim}. Fix: network = fd.networks.ResidualMLP(key, dim={dim}, context_dim={context_dim})"
        )
    warn_about_tables(caller, events, contexts, handed)
    scaling, white = fit_scaling(*events, weighing)
    context_scaling, white_contexts = standardize(contexts.rows, contexts.sites, weighing)
    table = Sample(
        jnp.asarray(white, float),
        jnp.asarray(white_contexts, float),
        None if weighing is None else jnp.asarray(weighing, float),
    )
    context_reach = reach_of(white_contexts) if context_dim else None
    return Parts(table, network, scaling, context_scaling, reach_of(white), context_reach)


def reach_of(white: np.ndarray) -> Scalar:
    """Radius up to which a network is to tell whitened rows apart; of rows that are all alike, that of one deviation."""
    return jnp.asarray(REACH_FACTOR * max(1.0, np.max(np.linalg.norm(white, axis=1))), float)


def default_network(key: Key, rows: float, dim: int, context_dim: int = 0, **otherwise: Any) -> ResidualMLP:
    """The network for so many rows: smaller and without experts below 2,000; options given are taken instead."""
    small: dict[str, Any] = {"width": 64, "experts": 0} if rows < FEW_ROWS else {}
    return ResidualMLP(key, dim, context_dim, **small | otherwise)


def whitened(
    caller: str, model: AbstractProbabilityFlow, data: Any, context: Any, weights: ArrayLike | None = None
) -> Sample:
    """Events and contexts in the coordinates of a model that is there already.

    Raises:
        TypeError, ValueError: if they are unusable, or not of the model's shapes.
    """
    states = whitened_events(caller, "data", model, data)
    contexts = whitened_contexts(caller, model, context, len(states), [read(caller, "data", data)])
    weighing = weight_table(caller, weights, len(states))
    if weighing is None:
        return Sample(states, contexts)
    return Sample(states, contexts, jnp.asarray(weighing, float)).take(jnp.flatnonzero(weighing))


def whitened_events(caller: str, name: str, model: AbstractProbabilityFlow, data: Any) -> Rows:
    """Events in the coordinates of a model that is there already; `name` is that of the argument, for errors."""
    return _whitened(model.scaling, event_rows(caller, name, model, data))


def event_rows(caller: str, name: str, model: AbstractProbabilityFlow, data: Any) -> np.ndarray:
    """Events for a model that is there already, checked, float64 in the user's units."""
    table = event_table(caller, arranged(caller, name, data, model.scaling.sites), model.scaling.support, name).rows
    _check_shape(caller, name, model.scaling, table)
    return table


def whitened_contexts(
    caller: str, model: AbstractProbabilityFlow, context: Any, rows: int, others: Sequence[Handed] = ()
) -> ContextRows:
    """As many contexts in the coordinates of a model that is there already; `others` are arguments with the same rows."""
    if context is not None:
        context = arranged(caller, "context", context, model.context_scaling.sites)
    table = context_table(caller, context, rows, others, model.context_shape).rows
    _check_shape(caller, "context", model.context_scaling, table)
    return _whitened(model.context_scaling, table)


def _check_shape(caller: str, name: str, scaling: Scaling, table: np.ndarray) -> None:
    shape = scaling.event_shape
    if table.shape[1:] != shape:
        raise ValueError(
            f"{caller} expected `{name}` with shape (n, {', '.join(map(str, shape))}), as the model was trained with; "
            f"got {table.shape}, whose columns are to be those, in their order. Fix: {_refit(name, table.shape, shape)}"
        )


def _refit(name: str, got: tuple[int, ...], shape: tuple[int, ...]) -> str:
    """The line that takes the columns that a model was trained with from a table, or trains one on the table, as a fix."""
    if shape == (0,):
        return f"{name} = None"
    rest = got[1:]
    if got[1:] != (0,) and (prod(rest) == prod(shape) or (len(rest) == len(shape) == 1 and rest[0] > shape[0])):
        return reshaping(name, got, shape)
    given = "data" if got[1:] == (0,) else "data, context" if name == "context" else name
    return f"density, report = fd.fit_flow(key, {given}); model = density.model"


def _whitened(scaling: Scaling, table: np.ndarray) -> Rows:
    # In float64, as the table that a model is learned from: what is near an edge, or far from 0, is not told apart in float32.
    with jax.enable_x64(True):
        states = jax.vmap(lambda scaling, row: scaling.whiten(row)[0], in_axes=(None, 0))(scaling, jnp.asarray(table))
        white = np.asarray(states)
    return jnp.asarray(white, float)
