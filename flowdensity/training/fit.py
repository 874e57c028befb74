"""Learning a density from data."""

import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple, TypeAlias

import jax.random as jr

from .._checks import check_choice, check_kind
from .._pytree import in_session
from .._typing import ArrayLike, Key
from ..data.tables import Named, Sample, Support
from ..distributions.checks import check_flow_model
from ..distributions.flow import FlowDensity
from ..divergence.exact import ExactDivergence
from ..divergence.interface import AbstractDivergence
from ..models.flows import AbstractCircle, AbstractProbabilityFlow, ContinuousFlow, Diffusion, Flow, Prediction
from ..models.networks import AbstractNetwork
from ..models.paths import AbstractPath, CondOT, Trigonometric, VariancePreserving
from .checkpoints import Checkpoint, open_checkpoint
from .divergence import distil
from .likelihood import maximise_likelihood
from .loop import History
from .objectives import LangevinStein
from .options import Options, check_options
from .prepare import Parts, check_shared, prepare, whitened
from .progress import activity
from .report import FitReport
from .results import last, relay
from .start import StartChoice
from .steps import ROWS, choose_steps
from .velocity import fit_velocity

SOLVER = "solver steps"
"""The last part of a fit, as a report names it."""
Found: TypeAlias = tuple[FlowDensity, FitReport]


def fit_flow(
    key: Key,
    data: ArrayLike | Named,
    context: ArrayLike | Named | None = None,
    *,
    path: AbstractPath | None = None,
    support: Support | None = None,
    network: AbstractNetwork | None = None,
    divergence: Literal["stein"] | AbstractDivergence = "stein",
    steps: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    validation: float = 0.1,
    weights: ArrayLike | None = None,
    tolerance: float = 0.01,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> tuple[FlowDensity, FitReport]:
    r"""Learn a density from data by flow matching and distil its divergence.

    Two stages. The first fits the velocity $F$ of a probability flow to $\cos\phi\,x_1 - \sin\phi\,e$ (Lipman et al.
    2023, arXiv 2210.02747) and stops where held-out rows are fitted best; it starts at $F = 0$, the fitted
    Gaussian, or below 2,000 rows, without a context, at a mixture of Gaussians if held-out rows are likelier for it. The
    second freezes $F$ and distils its divergence with `fit_divergence`.

    Args:
        key: JAX PRNG key.
        data: events, shape `(n, *event_shape)`, n >= 2, in the user's units; 1-D data gives a scalar event. Named values (a
            dict of arrays, a DataFrame, an arviz posterior) make one vector, which `density.unpack` and `sample_sites` take
            apart.
        context: what the density is conditional on, shape `(n, *context_shape)`, or a dict of such arrays; None for an
            unconditional density.
        path: where along the circle to train and step; `CondOT()` by default. Below 2,000 rows, and in up to three dimensions,
            half of the terms of the loss are where the likelihood weighs errors.
        support: numpyro constraint of one event, such as `constraints.positive`; a list with one for each coordinate of a
            vector; or a dict with one for each named site that is not real. The real line by default.
        network: an initialised `AbstractNetwork` whose output starts at zero; by default a `ResidualMLP`
            of width 256 with 16 experts, or 64 without experts below 2,000 rows.
        divergence: "stein" distils; an `AbstractDivergence`, such as `ExactDivergence()`, is used as it is.
        steps: optimiser steps of each stage at most; by default 8,000, or 4,000 below 2,000 rows.
        batch_size: terms of the loss in each step; by default 512.
        learning_rate: peak learning rate; by default 1e-3 for the velocity (2e-3 in up to three dimensions, 3e-4 below 2,000
            rows) and 2e-3 for its divergence.
        validation: fraction of the rows held out for early stopping, between 0 and 1. Below 2,000 rows the number of steps
            is that under which five such parts are likeliest, and the flow is then trained on all rows; it is left at its
            start unless these gain more over that than the standard error.
        weights: how much each row counts, shape `(n,)`, of any sum: importance weights, or counts; None for all alike.
        tolerance: error of `log_prob`, in nats, that the solver may make: the fewest steps are taken that keep within it.
        checkpoint: a folder in which the state of the fit is kept, some fifty times a stage. Where the process was ended, even
            killed, the same call goes on from there and ends with the same weights; once more, it returns them at once.
        progress: whether to show bars with step, losses and time left.

    Returns:
        The density and a report. Ctrl-C loses nothing that was learned: in the first stage it gives the best flow so far with
        `ExactDivergence`, in the training of the second it goes on with the divergence learned so far, and elsewhere it gives
        what there is. A warning and the report's `interrupted` say what was left undone. Before the first step nothing is lost,
        and the KeyboardInterrupt is raised.

    Raises:
        TypeError: if an argument is of the wrong kind.
        ValueError: if data or options are unusable; raised before any work is done.
        TrainingDiverged: if a loss is not finite; the best density until then is in its `best`.
    """
    path = CondOT() if path is None else path
    check_kind("fit_flow", "path", path, AbstractPath, "path=fd.CondOT()")
    return _fit(
        "fit_flow",
        "flow",
        lambda parts: Flow(path=path, **parts.shared),
        key, data, context, support, weights, network, divergence, steps, batch_size, learning_rate, validation, tolerance,
        checkpoint, progress,
    )  # fmt: skip


def fit_diffusion(
    key: Key,
    data: ArrayLike | Named,
    context: ArrayLike | Named | None = None,
    *,
    path: AbstractPath | None = None,
    prediction: Prediction = "velocity",
    support: Support | None = None,
    network: AbstractNetwork | None = None,
    divergence: Literal["stein"] | AbstractDivergence = "stein",
    steps: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    validation: float = 0.1,
    weights: ArrayLike | None = None,
    tolerance: float = 0.01,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> tuple[FlowDensity, FitReport]:
    r"""Learn a density from data with a diffusion model and distil its divergence.

    As `fit_flow`, on the path of a diffusion and with the network predicting what is customary there (Song et al. 2021,
    arXiv 2011.13456). Densities are those of the probability-flow ODE, over the whole quarter circle where the prediction
    allows it: see `Diffusion`.

    Args:
        key: JAX PRNG key.
        data: as `fit_flow`.
        context: as `fit_flow`.
        path: as `fit_flow`: `VariancePreserving()` by default, `VarianceExploding()`, `Trigonometric()`.
        prediction: what the network predicts: "velocity", "noise", "data" or "score".
        support: as `fit_flow`.
        network: as `fit_flow`.
        divergence: as `fit_flow`.
        steps: as `fit_flow`.
        batch_size: as `fit_flow`.
        learning_rate: as `fit_flow`.
        validation: as `fit_flow`.
        weights: as `fit_flow`.
        tolerance: as `fit_flow`.
        checkpoint: as `fit_flow`.
        progress: as `fit_flow`.

    Returns:
        The density and a report, as `fit_flow`.

    Raises:
        TypeError, ValueError, TrainingDiverged: as `fit_flow`.
    """
    path = VariancePreserving() if path is None else path
    check_kind("fit_diffusion", "path", path, AbstractPath, "path=fd.VariancePreserving()")
    check_choice("fit_diffusion", "prediction", prediction, Prediction, fix="velocity")
    return _fit(
        "fit_diffusion",
        "diffusion",
        lambda parts: Diffusion(path=path, prediction=prediction, **parts.shared),
        key, data, context, support, weights, network, divergence, steps, batch_size, learning_rate, validation, tolerance,
        checkpoint, progress,
    )  # fmt: skip


def fit_likelihood(
    key: Key,
    data: ArrayLike | Named,
    context: ArrayLike | Named | None = None,
    *,
    model: AbstractProbabilityFlow | None = None,
    support: Support | None = None,
    network: AbstractNetwork | None = None,
    divergence: Literal["stein"] | AbstractDivergence = "stein",
    steps: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    validation: float = 0.1,
    weights: ArrayLike | None = None,
    tolerance: float = 0.01,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> tuple[FlowDensity, FitReport]:
    r"""Learn a density by maximum likelihood, as a continuous normalizing flow, and distil its divergence.

    Each step solves the ODE for a batch of rows and differentiates through it (Grathwohl et al. 2019, "FFJORD",
    arXiv 1810.01367), with the exact divergence in up to sixteen dimensions and a fresh Hutchinson probe for every row above.
    This takes far longer a step than `fit_flow`; what it is for is a model that is there already, whose likelihood a short
    run can improve. Without a `model` it starts from the fitted Gaussian.

    A model on the circle comes back as a `ContinuousFlow`: its states no longer follow the Gaussian path.

    Args:
        key: JAX PRNG key.
        data: as `fit_flow`.
        context: as `fit_flow`.
        model: where to start, such as `density.model` or a `VelocityField`; its `network` is trained.
        support: as `fit_flow`; that of `model`, if there is one.
        network: as `fit_flow`; that of `model`, if there is one.
        divergence: as `fit_flow`, once the model is trained.
        steps: optimiser steps at most; by default 1,000, or 300 from a given model. The distillation has its own default.
        batch_size: rows in each step; by default 256.
        learning_rate: peak learning rate; by default 2e-3, or 2e-4 from a given model.
        validation: fraction of the rows held out for early stopping, between 0 and 1.
        weights: as `fit_flow`.
        tolerance: as `fit_flow`.
        checkpoint: as `fit_flow`.
        progress: whether to show bars with step, losses and time left.

    Returns:
        The density and a report, as `fit_flow`; the losses of the stage "likelihood" are in nats per dimension of the
        whitened data.

    Raises:
        TypeError, ValueError, TrainingDiverged: as `fit_flow`.
    """
    caller = "fit_likelihood"
    check_shared(caller, key, divergence, validation, tolerance)
    if model is None:
        net_key, key = jr.split(key)
        with activity("preparation", progress):
            parts, options = prepare(
                caller, net_key, data, context, support, weights, network, steps, batch_size, learning_rate
            )
        table = parts.table
        model, columns = Flow(path=Trigonometric(), **parts.shared), parts.scaling.summary()
        chosen = Options(steps or 1000, batch_size or 256, learning_rate or 2e-3)
    else:
        check_flow_model(caller, model)
        for name, value in (("support", support), ("network", network)):
            if value is not None:
                raise ValueError(
                    f"{caller} expected `model` or `{name}`, since a model has its own; got both. Fix: {name}=None"
                )
        model = in_session(model)
        with activity("preparation", progress):
            table = whitened(caller, model, data, context, weights)
        options = check_options(caller, table.effective, steps, batch_size, learning_rate)
        chosen, columns = Options(steps or 300, batch_size or 256, learning_rate or 2e-4), None
    if isinstance(model, AbstractCircle):
        model = ContinuousFlow(model)
    kept = open_checkpoint(caller, checkpoint, key, model, table, chosen, options, divergence, validation)
    likelihood_key, stein_key = jr.split(key)
    trained = maximise_likelihood(likelihood_key, model, table, chosen, validation, progress=progress, checkpoint=kept)
    models = ((model, history, None) for model, history in trained)
    finish = Finish(stein_key, table, options, divergence, tolerance, kept, progress)
    return last(finish(models, "likelihood", columns))


def _fit(
    caller: str,
    stage: str,
    make: Callable[[Parts], Flow | Diffusion],
    key: Key,
    data: ArrayLike | Named,
    context: ArrayLike | Named | None,
    support: Support | None,
    weights: ArrayLike | None,
    network: AbstractNetwork | None,
    divergence: Literal["stein"] | AbstractDivergence,
    steps: int | None,
    batch_size: int | None,
    learning_rate: float | None,
    validation: float,
    tolerance: float,
    checkpoint: str | os.PathLike[str] | None,
    progress: bool,
) -> tuple[FlowDensity, FitReport]:
    """Fit the model on the circle that `make` makes of its parts; all checks first."""
    check_shared(caller, key, divergence, validation, tolerance)
    net_key, flow_key, stein_key = jr.split(key, 3)
    with activity("preparation", progress):
        parts, options = prepare(
            caller, net_key, data, context, support, weights, network, steps, batch_size, learning_rate
        )
    model, table = make(parts), parts.table
    kept = open_checkpoint(caller, checkpoint, key, model, table, options, divergence, validation)
    models = fit_velocity(flow_key, model, table, options, validation, stage=stage, progress=progress, checkpoint=kept)
    finish = Finish(stein_key, table, options, divergence, tolerance, kept, progress)
    return last(finish(models, stage, parts.scaling.summary()))


class Finish(NamedTuple):
    """What follows on the training of a model: the divergence that was asked for, and as many solver steps as it needs."""

    key: Key
    table: Sample
    options: Options
    divergence: Literal["stein"] | AbstractDivergence
    tolerance: float
    checkpoint: Checkpoint | None
    progress: bool

    def __call__(
        self,
        models: Iterator[tuple[AbstractProbabilityFlow, History, StartChoice | None]],
        stage: str,
        columns: str | None,
    ) -> Iterator[Found]:
        """Ever better densities: of the models as they are trained, with their divergence, and with their solver."""
        exact = ExactDivergence() if self.divergence == "stein" else self.divergence
        left = ("divergence", "calibration", SOLVER) if self.divergence == "stein" else (SOLVER,)

        def so_far(model: AbstractProbabilityFlow, history: History, start: StartChoice | None, *undone: str) -> Found:
            seconds = {stage: history.seconds}
            report = FitReport({stage: history}, seconds, start=start, columns=columns, interrupted=(*undone, *left))
            return FlowDensity(model, divergence=exact), report

        found = yield from relay(models, lambda found: so_far(*found, stage))
        stein_key, step_key = jr.split(self.key)
        density, report = yield from relay(self._with_divergence(stein_key, *so_far(*found)), lambda found: found)
        yield self._with_solver(step_key, density, report)

    def _with_divergence(self, key: Key, density: FlowDensity, report: FitReport) -> Iterator[Found]:
        """Densities with a divergence that is distilled, or the one there is."""
        yield density, report
        if self.divergence != "stein":
            return
        for divergence, learned in distil(
            key,
            density.model,
            self.table,
            self.options,
            LangevinStein(),
            progress=self.progress,
            checkpoint=self.checkpoint,
        ):
            yield density.with_divergence(divergence), report.with_divergence(learned, SOLVER)

    def _with_solver(self, key: Key, density: FlowDensity, report: FitReport) -> tuple[FlowDensity, FitReport]:
        started = time.monotonic()
        with activity("choice of solver steps", self.progress):
            solver, errors = choose_steps(key, density, self.table, self.tolerance, self.options.share(2000, 16, ROWS))
        seconds = report.seconds | {"solver": time.monotonic() - started}
        cut = tuple(each for each in report.interrupted or () if each != SOLVER) or None
        return density.with_solver(solver), dataclasses.replace(report, seconds=seconds, steps=errors, interrupted=cut)
