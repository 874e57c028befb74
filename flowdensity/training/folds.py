"""Training the networks of all folds side by side on the matching loss, and scoring them."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from .._typing import Array, Float, Key, Scalar
from ..models.flows import AbstractGaussianFlow, GaussianFlow, with_network
from ..models.networks import AbstractNetwork
from ..solving import FixedStep
from .checkpoints import Checkpoint
from .likelihood import log_likelihoods
from .loop import History, Schedule, train
from .losses import (
    FAR_WEIGHT,
    TERMS_PER_FAR_TERM,
    MatchingDraws,
    Sample,
    draw_matching,
    far_loss,
    matching_loss,
    matching_terms,
)

VALIDATION_SOLVER = FixedStep(8)
"""Solver for validation likelihoods. It can be coarse: they are only compared with each other."""


class HeldRows(NamedTuple):
    """Rows whose likelihood is scored, and the key of the probes if the divergence is estimated."""

    sample: Sample
    key: Key


class Folds(NamedTuple):
    """Arguments of the losses, with a leading axis for the folds: models, training rows, and held-out draws or rows.

    A cross-validation has one more model, which is trained on all rows and not scored.
    """

    models: GaussianFlow
    kept: Sample
    held: MatchingDraws | HeldRows


class Trainer(NamedTuple):
    """Settings that all training runs of a fit share.

    Attributes:
        schedule: length and learning rate of the training.
        batch_size: number of terms of the loss of each fold in each step.
        likely: fraction of the angles that are drawn with the likelihood weighting.
        progress: whether to show bars.
        checkpoint: where to save the state.
    """

    schedule: Schedule
    batch_size: int
    likely: float
    progress: bool
    checkpoint: Checkpoint | None

    def run(self, key: Key, folds: Folds, stage: str) -> Iterator[tuple[Any, History]]:
        """Train the models of all folds, as `train` does. Losses are means over the folds."""
        for networks, history in train(
            key, folds.models.network, MatchingLoss(self.batch_size, self.likely), _judge, folds, self.schedule,
            stage=stage, progress=self.progress, checkpoint=self.checkpoint,
        ):  # fmt: skip
            yield with_network(folds.models, networks), history


class MatchingLoss(eqx.Module):
    """Mean matching loss of the folds, each over draws from its own rows, with a small share of the loss far from the data.

    Args:
        batch_size: number of terms for each fold.
        likely: fraction of the angles that are drawn with the likelihood weighting.
    """

    batch_size: int = eqx.field(static=True)
    likely: float = eqx.field(static=True)

    def __call__(self, networks: AbstractNetwork, key: Key, folds: Folds) -> Scalar:
        def one(model: AbstractGaussianFlow, key: Key, sample: Sample) -> Scalar:
            near_key, far_key = jr.split(key)
            near = matching_loss(model, draw_matching(near_key, sample, model, self.batch_size, self.likely))
            return near + FAR_WEIGHT * far_loss(far_key, model, sample, -(-self.batch_size // TERMS_PER_FAR_TERM))

        keys = jr.split(key, len(folds.kept.states))
        return jnp.mean(eqx.filter_vmap(one)(with_network(folds.models, networks), keys, folds.kept))


def _judge(networks: AbstractNetwork, folds: Folds) -> Scalar | Float[Array, "folds count"]:
    """Return the terms of the matching loss for fixed draws, or minus the mean log density of rows in nats per dimension."""
    models, held = with_network(folds.models, networks), folds.held
    if isinstance(held, MatchingDraws):
        return eqx.filter_vmap(matching_terms)(models, held)
    return -jnp.average(held_log_likelihoods(models, held), weights=held.sample.weights) / models.dim


@eqx.filter_jit
def held_log_likelihoods(
    models: AbstractGaussianFlow, held: HeldRows, probes: int = 1, solver: FixedStep = VALIDATION_SOLVER
) -> Float[Array, "folds rows"]:
    """Log densities of held-out rows under the models of their folds, in nats; estimated with probes in many dimensions."""
    models = at(models, slice(len(held.sample.states)))
    return eqx.filter_vmap(lambda model, rows: log_likelihoods(model, rows.sample, rows.key, solver, probes))(
        models, held
    )


def stack(trees: Sequence[Any]) -> Any:
    """Stack trees of the same structure into one, with a leading axis on the arrays."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves) if eqx.is_array(leaves[0]) else leaves[0], *trees)


def last_of(stacked: Any) -> Any:
    """Return the last of the stacked trees. For stacked models it is the result of the fit."""
    return at(stacked, -1)


def at(stacked: Any, index: int | slice) -> Any:
    """Return one of the stacked trees, or a stack of several."""
    return jax.tree.map(lambda leaf: leaf[index] if eqx.is_array(leaf) else leaf, stacked)
