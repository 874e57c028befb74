"""Learning a density from data."""

from collections.abc import Callable
from numbers import Real
from typing import Literal, get_args

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from numpyro.distributions import constraints

from .._typing import ArrayLike, Key, Scalar
from ..data.scaling import Scaling, fit_scaling, standardise
from ..data.tables import Sample, context_table, event_table
from ..distributions.flow import FlowDensity
from ..divergence.exact import ExactDivergence
from ..divergence.interface import AbstractDivergence
from ..models.flows import AbstractCircle, Diffusion, Flow, Prediction
from ..models.networks import AbstractNetwork, ResidualMLP
from ..models.paths import AbstractPath, CondOT, VariancePreserving
from .divergence import distil
from .loop import TrainingDiverged
from .objectives import LangevinStein
from .options import SMALL, check_kind, check_options
from .report import FitReport
from .velocity import fit_velocity

REACH = 1.5
"""Radius of the squash in multiples of the largest whitened radius in the data."""


def fit_flow(
    key: Key,
    data: ArrayLike,
    context: ArrayLike | None = None,
    *,
    path: AbstractPath | None = None,
    support: constraints.Constraint | None = None,
    network: AbstractNetwork | None = None,
    divergence: Literal["stein"] | AbstractDivergence = "stein",
    steps: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    validation: float = 0.1,
    progress: bool = True,
) -> tuple[FlowDensity, FitReport]:
    r"""Learn a density from data by flow matching and distil its divergence.

    Two stages. The first fits the velocity $F$ of a probability flow to $\cos\phi\,x_1 - \sin\phi\,e$ (Lipman et al.
    2023, arXiv 2210.02747) and stops where held-out rows are fitted best; it starts at $F = 0$, the fitted
    Gaussian. The second freezes $F$ and distils its divergence with `fit_divergence`.

    Args:
        key: JAX PRNG key.
        data: events, shape `(n, *event_shape)`, n >= 2, in the user's units; 1-D data gives a scalar event.
        context: what the density is conditional on, shape `(n, *context_shape)`; None for an unconditional density.
        path: where along the circle to train and step; `CondOT()` by default.
        support: numpyro constraint of one event, such as `constraints.positive`; the real line by default.
        network: an initialised `AbstractNetwork` whose output starts at zero; by default a `ResidualMLP`
            of width 256, or 64 below 2,000 rows.
        divergence: "stein" distils; an `AbstractDivergence`, such as `ExactDivergence()`, is used as it is.
        steps: optimiser steps of each stage at most; by default 8,000, or 4,000 below 2,000 rows.
        batch_size: terms of the loss in each step; by default 512.
        learning_rate: peak learning rate; by default 1e-3 for the velocity (3e-4 below 2,000 rows) and
            2e-3 for its divergence.
        validation: fraction of the rows held out for early stopping, between 0 and 1. Below 2,000 rows the number of steps
            is chosen by cross-validation over five such parts and the flow is then trained on all rows.
        progress: whether to show bars with step, losses and time left.

    Returns:
        The density and a report. If interrupted (Ctrl-C) in the first stage, the best flow so far with `ExactDivergence`, and
        in the second with the divergence learned so far; a warning says so.

    Raises:
        TypeError: if an argument is of the wrong kind.
        ValueError: if data or options are unusable; raised before any work is done.
        TrainingDiverged: if a loss is not finite; the best density until then is in its `best`.
    """
    path = CondOT() if path is None else path
    check_kind("fit_flow", "path", path, AbstractPath, "fd.CondOT()")
    return _fit(
        "fit_flow",
        "flow",
        lambda network, scaling, encoding, reach: Flow(
            network=network, path=path, scaling=scaling, context_scaling=encoding, reach=reach
        ),
        key, data, context, support, network, divergence, steps, batch_size, learning_rate, validation, progress,
    )  # fmt: skip


def fit_diffusion(
    key: Key,
    data: ArrayLike,
    context: ArrayLike | None = None,
    *,
    path: AbstractPath | None = None,
    prediction: Prediction = "velocity",
    support: constraints.Constraint | None = None,
    network: AbstractNetwork | None = None,
    divergence: Literal["stein"] | AbstractDivergence = "stein",
    steps: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    validation: float = 0.1,
    progress: bool = True,
) -> tuple[FlowDensity, FitReport]:
    r"""Learn a density from data with a diffusion model and distil its divergence.

    As `fit_flow`, on the path of a diffusion and with the network predicting what is customary there (Song et al. 2021,
    arXiv 2011.13456). Densities are those of the probability-flow ODE, over the whole quarter circle where the prediction
    allows it: see `Diffusion`.

    Args:
        key: JAX PRNG key.
        data: events, shape `(n, *event_shape)`, n >= 2, in the user's units; 1-D data gives a scalar event.
        context: what the density is conditional on, shape `(n, *context_shape)`; None for an unconditional density.
        path: where along the circle to train and step: `VariancePreserving()` by default, `VarianceExploding()`,
            `Trigonometric()`.
        prediction: what the network predicts: "velocity", "noise", "data" or "score".
        support: as `fit_flow`.
        network: as `fit_flow`.
        divergence: as `fit_flow`.
        steps: as `fit_flow`.
        batch_size: as `fit_flow`.
        learning_rate: as `fit_flow`.
        validation: as `fit_flow`.
        progress: as `fit_flow`.

    Returns:
        The density and a report, as `fit_flow`.

    Raises:
        TypeError, ValueError, TrainingDiverged: as `fit_flow`.
    """
    path = VariancePreserving() if path is None else path
    check_kind("fit_diffusion", "path", path, AbstractPath, "fd.VariancePreserving()")
    if prediction not in get_args(Prediction):
        raise ValueError(
            f"fit_diffusion expected `prediction` to be one of {get_args(Prediction)}; got {prediction!r}. "
            'Fix: prediction="velocity"'
        )
    return _fit(
        "fit_diffusion",
        "diffusion",
        lambda network, scaling, encoding, reach: Diffusion(
            network=network,
            path=path,
            prediction=prediction,
            scaling=scaling,
            context_scaling=encoding,
            reach=reach,
        ),
        key, data, context, support, network, divergence, steps, batch_size, learning_rate, validation, progress,
    )  # fmt: skip


def _fit(
    caller: str,
    stage: str,
    make: Callable[[AbstractNetwork, Scaling, Scaling, Scalar], AbstractCircle],
    key: Key,
    data: ArrayLike,
    context: ArrayLike | None,
    support: constraints.Constraint | None,
    network: AbstractNetwork | None,
    divergence: Literal["stein"] | AbstractDivergence,
    steps: int | None,
    batch_size: int | None,
    learning_rate: float | None,
    validation: float,
    progress: bool,
) -> tuple[FlowDensity, FitReport]:
    """Fit a model that `make` makes of a network, the scalings of events and contexts, and a reach; all checks first."""
    support = constraints.real if support is None else support
    check_kind(caller, "support", support, constraints.Constraint, "constraints.positive")
    if divergence != "stein":
        check_kind(caller, "divergence", divergence, AbstractDivergence, '"stein"')
    if not (isinstance(validation, Real) and 0.0 < validation < 1.0):
        raise ValueError(
            f"{caller} expected `validation` between 0 and 1, the fraction of rows held out; got {validation!r}. "
            "Fix: validation=0.1"
        )
    events = event_table(caller, data, support)
    contexts = context_table(caller, context, len(events))
    options = check_options(caller, len(events), steps, batch_size, learning_rate)

    scaling, white = fit_scaling(events, support)
    context_scaling, white_contexts = standardise(contexts)
    net_key, flow_key, stein_key = jr.split(key, 3)
    if network is None:
        width = 64 if len(events) < SMALL else 256
        network = ResidualMLP(net_key, scaling.dim, context_scaling.dim, width=width)
    else:
        check_kind(caller, "network", network, AbstractNetwork, "fd.ResidualMLP(key, dim)")
        if (network.dim, network.context_dim) != (scaling.dim, context_scaling.dim):
            raise ValueError(
                f"{caller} expected a `network` for {scaling.dim} dimensions and {context_scaling.dim} of context; got "
                f"one for {network.dim} and {network.context_dim}. "
                f"Fix: fd.ResidualMLP(key, dim={scaling.dim}, context_dim={context_scaling.dim})"
            )
    reach = REACH * np.max(np.linalg.norm(white, axis=1))
    model = make(network, scaling, context_scaling, jnp.asarray(reach, float))

    table = Sample(jnp.asarray(white, float), jnp.asarray(white_contexts, float))
    try:
        model, history = fit_velocity(flow_key, model, table, options, validation, stage=stage, progress=progress)
    except TrainingDiverged as error:
        error.best = FlowDensity(error.best, divergence=ExactDivergence())
        raise
    report = FitReport({stage: history}, {stage: history.seconds})
    if divergence != "stein" or history.interrupted:
        chosen = ExactDivergence() if divergence == "stein" else divergence
        return FlowDensity(model, divergence=chosen), report

    learned, stein_report = distil(stein_key, model, table, options, LangevinStein(), progress=progress)
    return FlowDensity(model, divergence=learned), FitReport(
        report.histories | stein_report.histories,
        report.seconds | stein_report.seconds,
        stein_report.residuals,
    )
