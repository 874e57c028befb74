"""Networks for the folds of a table, trained side by side on the matching loss, and how they are judged."""

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
from .losses import MatchingDraws, Sample, draw_matching, matching_loss

VALIDATION_SOLVER = FixedStep(8)
"""Solver for validation likelihoods. It can be coarse: they are only compared with each other."""


class HeldRows(NamedTuple):
    """Rows to be judged by their likelihood, and the key of the probes where the divergence takes any."""

    sample: Sample
    key: Key


class Folds(NamedTuple):
    """What the losses are handed, folds leading: the models, the rows to train on and what they are judged by.

    In a cross-validation there is one more model, trained on all rows and not judged.
    """

    models: GaussianFlow
    kept: Sample
    held: MatchingDraws | HeldRows


class Trainer(NamedTuple):
    """What all runs of a fit have in common.

    Attributes:
        schedule: how long and how fast.
        batch_size: terms of the loss of each fold in each step.
        likely: share of the angles that are drawn as the likelihood weighs them.
        progress: whether to show bars.
        checkpoint: where to keep what has been done.
    """

    schedule: Schedule
    batch_size: int
    likely: float
    progress: bool
    checkpoint: Checkpoint | None

    def run(self, key: Key, folds: Folds, stage: str) -> Iterator[tuple[Any, History]]:
        """Train the models of all folds, as `train` does; losses are means over folds."""
        for networks, history in train(
            key, folds.models.network, MatchingLoss(self.batch_size, self.likely), _judge, folds, self.schedule,
            stage=stage, progress=self.progress, checkpoint=self.checkpoint,
        ):  # fmt: skip
            yield with_network(folds.models, networks), history


class MatchingLoss(eqx.Module):
    """Mean matching loss of the folds, each on draws from its own rows.

    Args:
        batch_size: terms for each fold.
        likely: share of the angles that are drawn as the likelihood weighs them.
    """

    batch_size: int = eqx.field(static=True)
    likely: float = eqx.field(static=True)

    def __call__(self, networks: AbstractNetwork, key: Key, folds: Folds) -> Scalar:
        def one(model: AbstractGaussianFlow, key: Key, sample: Sample) -> Scalar:
            return matching_loss(model, draw_matching(key, sample, model, self.batch_size, self.likely))

        keys = jr.split(key, len(folds.kept.states))
        return jnp.mean(eqx.filter_vmap(one)(with_network(folds.models, networks), keys, folds.kept))


def _judge(networks: AbstractNetwork, folds: Folds) -> Scalar:
    """The matching loss of fixed draws, or minus the mean log density of rows in nats per dimension."""
    models, held = with_network(folds.models, networks), folds.held
    if isinstance(held, MatchingDraws):
        return jnp.mean(eqx.filter_vmap(matching_loss)(models, held))
    return -jnp.average(held_log_likelihoods(models, held), weights=held.sample.weights) / models.dim


@eqx.filter_jit
def held_log_likelihoods(models: AbstractGaussianFlow, held: HeldRows, probes: int = 1) -> Float[Array, "folds rows"]:
    """Log densities of held-out rows, each under the model of its fold, in nats; in many dimensions estimates with probes."""
    models = jax.tree.map(lambda leaf: leaf[: len(held.sample.states)] if eqx.is_array(leaf) else leaf, models)
    return eqx.filter_vmap(
        lambda model, rows: log_likelihoods(model, rows.sample, rows.key, VALIDATION_SOLVER, probes)
    )(models, held)


def stack(trees: Sequence[Any]) -> Any:
    """Trees of one structure as one, with a leading axis on the arrays."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves) if eqx.is_array(leaves[0]) else leaves[0], *trees)


def last_of(stacked: Any) -> Any:
    """The last of the trees that were stacked: of the models, the one that is the result."""
    return one_of(stacked, -1)


def one_of(stacked: Any, number: int) -> Any:
    """One of the trees that were stacked."""
    return jax.tree.map(lambda leaf: leaf[number] if eqx.is_array(leaf) else leaf, stacked)
