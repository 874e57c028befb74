"""Distilling a log density into one network."""

import dataclasses
import os
import time
from collections.abc import Iterator
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp

from .._checks import check_count, check_key
from .._pytree import in_session
from .._typing import Array, Key, Scalar
from ..data.tables import Sample
from ..distributions.amortized import AmortizedDensity
from ..distributions.checks import check_density
from ..distributions.flow import FlowDensity
from ..models.encoding import Encoding
from ..models.flows import AbstractProbabilityFlow, GaussianFlow
from ..models.log_density import LogDensityNetwork
from ..references.conditional import ConditionalMixture
from ..references.mixture import GaussianMixture
from .checkpoints import Checkpoint, open_checkpoint
from .departure import departs
from .labels import CHUNK_SIZE, FEW_INPUTS, contexts_of, labeled
from .loop import NOTHING_TO_LEARN, History, Schedule, train
from .losses import LogDensityLabels, errors_at, less_reference, log_density_loss
from .prepare import REACH_FACTOR, reach_of
from .report import Amortization, FitReport
from .results import activity, last, relay, until_interrupted
from .training import Plan, Training, check_training, held_out

LABELS_PER_DIMENSION = 2_048
"""Default number of labels for each dimension of state and context."""
MIN_LABELS, MAX_LABELS = 6_144, 32_768
"""Smallest and largest default number of labels."""
MIN_WIDTH = 32
"""Width of the hidden layers of the default network with few inputs."""
NUM_QUADRATICS = 64
"""Number of quadratic functions in a default network with more than a few inputs."""
LABELS_PER_CHECK = 8
"""Number of labels for each sample on which the normalizer is measured."""
SAMPLES_PER_CONTEXT = 128
"""Number of samples with the same context in the check of the normalizer."""
GRADIENT_TOLERANCE = 1e-6
"""The normalizer is accepted when the mean density ratio differs from 1 by at most this."""
LEARNING_RATE = 1e-2
"""Default peak learning rate of the network."""
NORMALIZER = "normalizer (the density does not integrate to exactly 1)"
"""Name of the stage that is missing if the fit is interrupted before the normalizer is measured."""
SCALE_FLOOR = 1e-6
"""Floor for divisors, since a density that equals the fitted Gaussian has a departure of zero."""


def distill(
    key: Key,
    density: FlowDensity,
    *,
    labels: int | None = None,
    width: int | None = None,
    training: Training | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> tuple[AmortizedDensity, FitReport]:
    r"""Distill a learned density into one network whose `log_prob` takes one pass instead of an ODE solve.

    The network learns the departure of the log density from the reference of the density: the fitted Gaussian, or the mixture
    of Gaussians from which the velocity departs. It is fitted to log densities and their gradients (Czarnecki et al. 2017,
    "Sobolev training", arXiv 1706.04859) at samples of the flow, at samples with added noise and at samples moved outwards. For
    a conditional density some samples are also given another context.

    The log normalizer of the network is then measured by importance sampling against the flow and subtracted. For a conditional
    density it is linear in the whitened context. The report has the normalizer that remains on fresh samples, and the difference
    between the network and the flow there.

    Args:
        key: JAX PRNG key.
        density: the density, with the divergence and the solver to distill it with. A conditional density is distilled for the
            contexts it has been given. If it has been given none, contexts are normal, with the means and standard deviations of
            the contexts it was learned with.
        labels: number of states that the network is fitted to; by default 2,048 for each dimension of event and context, but at
            least 6,144 and at most 32,768.
        width: units of each hidden layer; by default 32, or 64 for a conditional density. If event and context have more than
            four dimensions together, the default is 128, or 64 for an unconditional density that departs from a mixture of
            Gaussians, and the network also has 64 quadratic functions.
        training: steps, labels in each step and learning rate. The default is `Training()` with a peak learning rate of 1e-2. A
            sixteenth of the labels is always held out.
        checkpoint: as in `fit_flow`; the labels are computed again.
        progress: whether to show bars.

    Returns:
        The amortized density, with the contexts of `density`, and a report whose `amortization` measures its error. Ctrl-C
        during the training of the network ends only the training, since a density needs its normalizer. Ctrl-C after that
        returns the current density, with a warning that says what it lacks. Ctrl-C during the computation of the labels ends
        the call, since nothing has been learned yet.

    Raises:
        TypeError, ValueError: if an argument is invalid. Raised before any work is done.
        TrainingDiverged: if a loss is not finite. The exception's `best` holds the best density up to then.

    Examples:
        >>> fast, report = fd.distill(key, density)
        >>> print(report.summary())
        >>> fast.log_prob(data[:5])
    """
    caller = "distill"
    check_key(caller, key)
    check_density(caller, density, FlowDensity)
    density = in_session(density)
    if isinstance(density.model.context_scaling, Encoding) and density.context is None:
        raise ValueError(
            f"{caller} expected a density that has been given contexts, since the outputs of its encoders have no known "
            "distribution; got one without. Fix: density = density.given(context)"
        )
    context_dim = density.model.context_scaling.dim
    inputs = density.model.dim + context_dim
    usual = min(max(MIN_LABELS, LABELS_PER_DIMENSION * inputs), MAX_LABELS)
    labels = usual if labels is None else check_count(caller, "labels", labels, least=16, fix=usual)
    if width is None:
        width = _default_width(density.model)
    width = check_count(caller, "width", width, fix=128)
    training = check_training(caller, training)
    plan = training.plan(steps=4000, batch_size=512, learning_rate=LEARNING_RATE)
    # The density itself cannot be part of the digest: the leaves of a numpyro distribution come in a different order in each
    # process.
    parts = density.model, density.divergence, density.solver, density.context
    kept_files = open_checkpoint(caller, checkpoint, key, parts, labels, width, *training.fingerprint())
    return last(_distilled(key, density, labels, width, plan, progress=progress, checkpoint=kept_files))


class Labels(NamedTuple):
    """Arguments of the loss: training labels, held-out labels, and the typical size of a component of a gradient."""

    kept: LogDensityLabels
    held: LogDensityLabels
    slope: Scalar


class LogDensityLoss(eqx.Module):
    """Errors of log densities and of their gradients over a batch of labels.

    Args:
        batch_size: number of labels in a batch.
    """

    batch_size: int = eqx.field(static=True)

    def __call__(self, network: LogDensityNetwork, key: Key, labels: Labels) -> Scalar:
        rows = jr.randint(key, (self.batch_size,), 0, len(labels.kept.values))
        return log_density_loss(network, jax.tree.map(lambda leaf: leaf[rows], labels.kept), labels.slope)


def _held_loss(network: LogDensityNetwork, labels: Labels) -> Scalar:
    return log_density_loss(network, labels.held, labels.slope)


def _distilled(
    key: Key,
    density: FlowDensity,
    labels: int,
    width: int,
    plan: Plan,
    *,
    progress: bool,
    checkpoint: Checkpoint | None,
) -> Iterator[tuple[AmortizedDensity, FitReport]]:
    """Yield amortized densities: during training, then with a normalizer, then with that normalizer checked on fresh samples."""
    point_key, net_key, train_key, absorb_key, verify_key = jr.split(key, 5)
    started = time.monotonic()
    some = jr.normal(point_key, (CHUNK_SIZE, density.model.dim))
    departing = departs(density.model, Sample(some, contexts_of(point_key, density, CHUNK_SIZE)))
    # If the flow equals its reference, its log density is known in closed form, so few labels are enough.
    labels = labels if departing else min(labels, CHUNK_SIZE)
    table = labeled(point_key, density, labels, each=1, spread=True, progress=progress)
    seconds = {"labels": time.monotonic() - started}

    held = held_out(labels, 1 / 16)
    kept, out = jax.tree.map(lambda leaf: leaf[held:], table), jax.tree.map(lambda leaf: leaf[:held], table)
    network = _new_network(net_key, density, kept, np.asarray(contexts_of(point_key, density, labels)), width)
    kept, out = (less_reference(network, each) for each in (kept, out))
    network = eqx.tree_at(lambda n: n.scale, network, _typical(kept.values) if departing else jnp.zeros(()))
    # The learning rate only decreases, so the best weights come late, and the held-out labels show overfitting there.
    schedule = Schedule(plan.steps, plan.learning_rate, plan.steps, plan.optimizer)
    results = train(
        train_key, network, LogDensityLoss(plan.batch_size), _held_loss, Labels(kept, out, _typical(kept.slopes)), schedule,
        stage="log density", progress=progress, checkpoint=checkpoint,
    ) if departing else iter([(network, NOTHING_TO_LEARN)])  # fmt: skip

    def so_far(trained: tuple[LogDensityNetwork, History]) -> tuple[AmortizedDensity, FitReport]:
        network, history = trained
        report = FitReport({"log density": history}, seconds, interrupted=("log density", NORMALIZER))
        return AmortizedDensity(network, density), report

    network, history = yield from relay(until_interrupted(results), so_far)
    cut = ("log density",) if history.status == "interrupted" else ()
    report = FitReport(
        {"log density": history}, seconds | {"log density": history.seconds}, interrupted=(*cut, NORMALIZER)
    )
    yield AmortizedDensity(network, density), report
    started = time.monotonic()
    with activity("measurement of the normalizer", progress):
        samples = max(CHUNK_SIZE, labels // LABELS_PER_CHECK // SAMPLES_PER_CONTEXT * SAMPLES_PER_CONTEXT)
        network = normalized(absorb_key, density, network, samples)
        yield (
            AmortizedDensity(network, density),
            dataclasses.replace(report, interrupted=(*cut, "check of the normalizer")),
        )
        amortization = measured(verify_key, density, network, samples)
    seconds = report.seconds | {"normalizer": time.monotonic() - started}
    yield (
        AmortizedDensity(network, density),
        FitReport({"log density": history}, seconds, amortization=amortization, interrupted=cut or None),
    )


def _default_width(model: AbstractProbabilityFlow) -> int:
    """Width of a network. It is larger for more inputs, for a conditional density, and for a Gaussian reference."""
    context_dim = model.context_scaling.dim
    if model.dim + context_dim <= FEW_INPUTS:
        # The errors of a likelihood add up over observations, so a conditional density needs a more accurate network.
        return MIN_WIDTH * (2 if context_dim else 1)
    return MIN_WIDTH * (4 if context_dim or _reference_of(model) is None else 2)


def _reference_of(model: AbstractProbabilityFlow) -> GaussianMixture | ConditionalMixture | None:
    """The mixture that the velocity of a model departs from, or None for the fitted Gaussian."""
    return model.reference if isinstance(model, GaussianFlow) else None


def _new_network(
    key: Key, density: FlowDensity, labels: LogDensityLabels, contexts: np.ndarray, width: int
) -> LogDensityNetwork:
    """Create an untrained network that resolves the states and contexts of the labels."""
    model = density.model
    inputs = model.dim + contexts.shape[1]
    return LogDensityNetwork(
        key,
        model.dim,
        contexts.shape[1],
        reach=jnp.minimum(model.reach, REACH_FACTOR * jnp.max(jnp.linalg.norm(labels.states, axis=1))),
        context_reach=reach_of(contexts) if contexts.shape[1] else None,
        reference=_reference_of(model),
        scale=jnp.ones(()),
        width=width,
        experts=NUM_QUADRATICS if inputs > FEW_INPUTS else 0,
    )


def normalized(key: Key, density: FlowDensity, network: LogDensityNetwork, samples: int) -> LogDensityNetwork:
    r"""Return the network with its log normalizer $b$ measured on samples of the flow.

    Let $w = \tilde q/p$ be the ratio of the network's density to the flow's, and $f = (1, c)$. The log normalizer $b$ minimizes
    $\mathbb{E}[w\,e^{-b\cdot f} + b\cdot f]$. Without a context this gives $b = \log\mathbb{E}[w]$; with a context it is a
    Poisson regression.
    """
    labels = labeled(key, density, samples, each=1, spread=False, progress=False)
    excess = np.asarray(errors_at(network, labels)[0], np.float64)
    features = np.asarray(jax.vmap(network.normalizer_features)(labels.contexts), np.float64)

    def ratios(coefficients: np.ndarray) -> np.ndarray:
        return np.exp(excess - features @ coefficients)

    start = np.zeros(features.shape[1])
    start[0] = logsumexp(excess) - np.log(len(excess))
    with np.errstate(over="ignore"):  # a step that is too long is refused
        found = minimize(
            lambda b: np.mean(ratios(b) + features @ b),
            start,
            jac=lambda b: features.T @ (1.0 - ratios(b)) / len(excess),
            hess=lambda b: (ratios(b)[:, None] * features).T @ features / len(excess),
            method="trust-exact",
            options={"gtol": GRADIENT_TOLERANCE},
        )
    return eqx.tree_at(lambda n: n.normalizer, network, network.normalizer + jnp.asarray(found.x, float))


def measured(key: Key, density: FlowDensity, network: LogDensityNetwork, samples: int) -> Amortization:
    """Measure the difference between a network and the density it was distilled from, on fresh samples of that density."""
    labels = labeled(key, density, samples, each=SAMPLES_PER_CONTEXT, spread=False, progress=False)
    errors, slope_errors = errors_at(network, labels)
    # Samples with the same context are not independent, so the standard errors use one number for each context.
    error = np.asarray(errors, np.float64).reshape(-1, SAMPLES_PER_CONTEXT)
    wrong, right = (np.sqrt(np.mean(np.square(np.asarray(each)))) for each in (slope_errors, labels.slopes))
    rmse = max(np.sqrt(np.mean(np.square(error))), SCALE_FLOOR)
    ratio = np.exp(error)
    integrals, within = ratio.mean(1), np.mean(ratio.var(1, ddof=1)) / SAMPLES_PER_CONTEXT
    between = integrals.var(ddof=1) - within if labels.contexts.shape[1] else 0.0

    def error_of_mean(each: np.ndarray) -> float:
        return float(each.std(ddof=1) / np.sqrt(len(each)))

    return Amortization(
        bias=(float(error.mean()), error_of_mean(error.mean(1))),
        rmse=(float(rmse), error_of_mean(np.square(error).mean(1)) / (2.0 * float(rmse))),
        gradient=float(wrong / max(right, SCALE_FLOOR)),
        log_normalizer=(float(np.log(ratio.mean())), error_of_mean(integrals) / float(ratio.mean())),
        between_contexts=float(np.sqrt(max(0.0, between)) / ratio.mean()),
        efficiency=float(1.0 / (ratio.mean() * np.mean(1.0 / ratio))),
    )


def _typical(values: Array) -> Scalar:
    """Median absolute value, bounded away from zero."""
    return jnp.maximum(jnp.median(jnp.abs(values)), SCALE_FLOOR)
