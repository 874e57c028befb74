"""Preparing a fit: check the arguments, whiten the tables and create the default network."""

from collections.abc import Mapping
from math import prod
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from .._pytree import in_session
from .._typing import ArrayLike, Key, Scalar
from ..data.scaling import Scaling, fit_scaling, standardize
from ..data.supports import free_size
from ..data.tables import Sample, Support, effective_rows, fit_tables
from ..data.warned import warn_about_tables
from ..models.encoder_checks import check_encoder
from ..models.encoding import (
    EncodedNetwork,
    Encoder,
    Encoding,
    encoded_contexts,
    new_encoding,
)
from ..models.flows import AbstractProbabilityFlow, GaussianFlow
from ..models.networks import AbstractNetwork, ResidualMLP
from .training import FEW_DIMENSIONS, FEW_ROWS

REACH_FACTOR = 1.5
"""Reach of a model, as a multiple of the largest whitened radius in the data."""
FOURIER_FEATURES = 32
"""Number of random Fourier features of the default network in few dimensions."""


class Parts(NamedTuple):
    """Parts that models of every kind share, and the training table."""

    table: Sample
    network: AbstractNetwork
    scaling: Scaling
    context_scaling: Scaling | Encoding
    reach: Scalar
    context_reach: Scalar | None

    @property
    def shared(self) -> dict[str, Any]:
        """Arguments that models of every kind take."""
        return {name: value for name, value in self._asdict().items() if name != "table"}

    def with_encoders(self, model: GaussianFlow) -> GaussianFlow:
        """A model whose network has encoders, with these as the map of its contexts instead. Other models stay the same."""
        if not isinstance(model.network, EncodedNetwork):
            return model
        encoding = eqx.tree_at(lambda e: e.encoders, self.context_scaling, model.network.encoders)
        return eqx.tree_at(lambda m: (m.network, m.context_scaling), model, (model.network.network, encoding))

    def encoded(self, model: AbstractProbabilityFlow) -> tuple[AbstractProbabilityFlow, Sample]:
        """A model with encoders for its contexts, with the reach of the encoded contexts, and the table with these."""
        if not isinstance(model.context_scaling, Encoding):
            return model, self.table
        contexts = encoded_contexts(model.context_scaling, self.table.contexts)
        model = eqx.tree_at(lambda m: m.context_scaling.reach, model, reach_of(np.asarray(contexts)))
        return model, self.table._replace(contexts=contexts)


def prepare(
    caller: str,
    key: Key,
    data: Any,
    context: Any,
    support: Support | None,
    weights: ArrayLike | None,
    network: AbstractNetwork | None,
    encoder: Encoder | Mapping[str, Encoder] | None = None,
) -> Parts:
    """Check the arguments of a fit that creates a model, whiten the tables and create a network if none is given.

    Raises:
        TypeError, ValueError: if an argument is invalid.
    """
    network, encoder = in_session((network, encoder))
    events, contexts, weighing, handed = fit_tables(caller, data, context, support, weights, encoder is not None)
    rows = len(events.rows) if weighing is None else effective_rows(weighing)
    dim = free_size(events.support, events.rows.shape[1:])
    encoded = None if encoder is None else new_encoding(contexts, check_encoder(caller, encoder, contexts))
    context_dim = prod(contexts.rows.shape[1:]) if encoded is None else encoded[0].dim
    if network is None:
        network = default_network(key, rows, dim, context_dim)
    elif (network.dim, network.context_dim) != (dim, context_dim):
        raise ValueError(
            f"{caller} expected a `network` for {dim} dimensions and {context_dim} of context; got one for {network.dim} and "
            f"{network.context_dim}. Fix: network = fd.networks.ResidualMLP(key, dim={dim}, context_dim={context_dim})"
        )
    if encoded is not None:
        encoding, _ = encoded
        network = EncodedNetwork(network, encoding.encoders, encoding.shapes, encoding.summary_dim)
        handed = [each for each in handed if each.name != "context"]
    # The contexts of encoders have absent rows, which the checks of tables do not know.
    checked = contexts if encoded is None else contexts._replace(rows=np.zeros((len(contexts.rows), 0)), sites=None)
    warn_about_tables(caller, events, checked, handed)
    scaling, white = fit_scaling(*events, weighing)
    context_scaling, white_contexts = encoded or standardize(contexts.rows, contexts.sites, weighing)
    table = Sample(
        jnp.asarray(white, float),
        jnp.asarray(white_contexts, float),
        None if weighing is None else jnp.asarray(weighing, float),
    )
    # Encoded contexts have a reach of their own, which `Parts.encoded` sets after the training.
    context_reach = reach_of(white_contexts) if context_dim and encoder is None else None
    return Parts(table, network, scaling, context_scaling, reach_of(white), context_reach)


def reach_of(white: np.ndarray) -> Scalar:
    """Radius up to which a network resolves whitened rows: a multiple of the largest radius in the data, or of 1 if larger."""
    return jnp.asarray(REACH_FACTOR * max(1.0, np.max(np.linalg.norm(white, axis=1))), float)


def default_network(key: Key, rows: float, dim: int, context_dim: int = 0, **otherwise: Any) -> ResidualMLP:
    """Create the default network for a number of rows and dimensions; `otherwise` overrides its options.

    Below `FEW_ROWS` rows it is smaller and has no experts and no Fourier features, since it overfits sooner. Fourier features
    suit few dimensions only: in many dimensions they let the network memorize single rows.
    """
    if rows < FEW_ROWS:
        options: dict[str, Any] = {"width": 64, "experts": 0}
    else:
        options = {"width": 128, "fourier_features": FOURIER_FEATURES if dim <= FEW_DIMENSIONS else 0}
    return ResidualMLP(key, dim, context_dim, **options | otherwise)
