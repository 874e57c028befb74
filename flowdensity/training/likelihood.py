"""Fitting a probability flow by maximum likelihood."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from .._typing import Array, Float, Key, Scalar
from ..data.tables import Sample
from ..divergence.stochastic import unbiased_divergence
from ..models.flows import AbstractProbabilityFlow, Model, with_network
from ..solving import AbstractSolver, FixedStep, state_log_prob
from .checkpoints import Checkpoint
from .loop import History, Schedule, train
from .splits import splits
from .training import Plan, held_out

TRAINING_SOLVER = FixedStep(8)
"""Solver inside the training loss. It is coarse: the velocity starts smooth, and every gradient pays for each step."""
MAX_HELD_OUT_ROWS = 1024
"""Maximum number of held-out rows scored at each validation."""


class Inputs(NamedTuple):
    """Arguments of the losses: the model, the training rows, the held-out rows and the key of their probes."""

    model: AbstractProbabilityFlow
    kept: Sample
    held: Sample
    held_key: Key


def maximize_likelihood(
    key: Key,
    model: Model,
    table: Sample,
    plan: Plan,
    *,
    progress: bool,
    checkpoint: Checkpoint | None,
) -> Iterator[tuple[Model, History]]:
    """Maximize the mean log density of a whitened table, with early stopping on held-out rows.

    A distilled divergence would be stale after one step. The divergence is therefore exact in up to sixteen dimensions. In more
    it is estimated with a new probe for every row, which leaves the gradient unbiased (Grathwohl et al. 2019,
    arXiv 1810.01367).

    Args:
        key: JAX PRNG key.
        model: model to start from; its `network` is trained.
        table: whitened events and contexts.
        plan: training options.
        progress: whether to show a bar.
        checkpoint: where to save the state.

    Yields:
        The best model so far and its losses, which are minus the log density in nats per dimension of the whitened table.
    """
    split_key, held_key, train_key = jr.split(key, 3)
    ((kept, held),) = splits(split_key, table, held_out(len(table.states), plan.validation), 1)
    args = Inputs(model, table.take(kept), table.take(held[:MAX_HELD_OUT_ROWS]), held_key)
    patience = max(100, plan.steps * 3 // 10)
    schedule = Schedule(plan.steps, plan.learning_rate, patience, plan.optimizer)
    for network, history in train(
        train_key, model.network, LikelihoodLoss(plan.batch_size), _held_loss, args, schedule,
        stage="likelihood", progress=progress, checkpoint=checkpoint,
    ):  # fmt: skip
        yield with_network(model, network), history


class LikelihoodLoss(eqx.Module):
    """Minus the mean log density of a batch of rows, in nats per dimension.

    Args:
        batch_size: number of rows in a batch; all rows if there are fewer.
    """

    batch_size: int = eqx.field(static=True)

    def __call__(self, network: Any, key: Key, args: Inputs) -> Scalar:
        rows_key, probe_key = jr.split(key)
        batch = args.kept.draw(rows_key, min(self.batch_size, len(args.kept.states)))
        return negative_log_likelihood(with_network(args.model, network), batch, probe_key)


def _held_loss(network: Any, args: Inputs) -> Scalar:
    return negative_log_likelihood(with_network(args.model, network), args.held, args.held_key)


def negative_log_likelihood(model: AbstractProbabilityFlow, sample: Sample, key: Key) -> Scalar:
    """Minus the mean log density of whitened rows, in nats per dimension; estimated with probes from `key` in many dimensions."""
    return -jnp.average(log_likelihoods(model, sample, key, TRAINING_SOLVER), weights=sample.weights) / model.dim


def log_likelihoods(
    model: AbstractProbabilityFlow, sample: Sample, key: Key, solver: AbstractSolver, probes: int = 1
) -> Float[Array, " rows"]:
    """Log density of each whitened row, in nats; an unbiased estimate with probes from `key` in many dimensions."""

    def one(key: Key, row: Sample) -> Scalar:
        return state_log_prob(model, unbiased_divergence(key, model.dim, probes), row.states, row.contexts, solver)

    return jax.vmap(one)(jr.split(key, len(sample.states)), sample)
