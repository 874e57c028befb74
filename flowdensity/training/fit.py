"""The fits that a user calls to learn a density from data."""

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import jax.random as jr

from .._checks import check_choice, check_key, check_kind, check_number
from .._pytree import in_session
from .._typing import ArrayLike, Key
from ..data.tables import Named, Sample, Support
from ..data.whitened import whitened
from ..distributions.checks import check_flow_model
from ..distributions.flow import FlowDensity
from ..divergence.exact import ExactDivergence
from ..divergence.interface import AbstractDivergence
from ..divergence.objectives import AbstractObjective, LangevinStein, check_objective
from ..divergence.stein import SteinDivergence
from ..models.encoding import Encoder
from ..models.flows import AbstractProbabilityFlow, GaussianFlow, Prediction, off_path
from ..models.networks import AbstractNetwork
from ..models.paths import AbstractPath, CondOT, Trigonometric, VariancePreserving
from ..references.choice import ReferenceChoice
from .checkpoints import Checkpoint, open_checkpoint
from .divergence import fit_divergence_head
from .likelihood import maximize_likelihood
from .loop import History
from .prepare import Parts, prepare
from .report import FitReport
from .results import activity, last, relay
from .steps import MAX_ROWS, choose_steps
from .training import FEW_DIMENSIONS, Training, check_training
from .velocity import fit_velocity

SOLVER_STEPS = "solver steps"
"""Name of the last stage of a fit in its report."""
Found: TypeAlias = tuple[FlowDensity, FitReport]
Trained: TypeAlias = Iterator[tuple[AbstractProbabilityFlow, History, ReferenceChoice | None]]
"""Successively better models, their losses, and the choice of their reference (None if there was no choice)."""


def fit_flow(
    key: Key,
    data: ArrayLike | Named,
    context: ArrayLike | Named | None = None,
    *,
    support: Support | None = None,
    weights: ArrayLike | None = None,
    path: AbstractPath | None = None,
    network: AbstractNetwork | None = None,
    encoder: Encoder | Mapping[str, Encoder] | None = None,
    divergence: AbstractDivergence | AbstractObjective | None = None,
    training: Training | None = None,
    tolerance: float = 0.01,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> tuple[FlowDensity, FitReport]:
    r"""Learn a density from data by flow matching.

    A network first learns the difference between the velocity of a probability flow and the velocity of a reference (Lipman et
    al. 2023, arXiv 2210.02747). The reference is the fitted Gaussian, or a mixture of Gaussians if held-out rows are more likely
    under the mixture. The velocity is then frozen. In more than three dimensions its divergence is distilled (Jagwani et al.
    2026, arXiv 2605.16486). In up to three dimensions the exact divergence costs less than twice as much as a distilled one and
    needs no training.

    Args:
        key: JAX PRNG key.
        data: events, shape `(n, *event_shape)` with n >= 2, in the user's units; or named values: a dict of arrays, a DataFrame,
            or an arviz posterior.
        context: values that the density is conditioned on, shape `(n, *context_shape)`, or named values.
        support: numpyro constraint of one event, a list with one constraint per coordinate, or a dict of constraints by site.
            Real by default.
        weights: weight of each row, shape `(n,)`, such as importance weights or counts. Equal by default.
        path: Gaussian probability path to train on; `CondOT()` by default.
        network: a network whose initial output is zero; `ResidualMLP` by default.
        encoder: network that turns one context into a vector, trained together with the velocity: `fd.encoders.DeepSet` for
            exchangeable rows, `fd.encoders.Sequence` for series, or any equinox module; a dict of these for some sites of a named
            context. Rows that a context does not have are NaN, after the others. By default contexts are used as they are.
        divergence: an objective, such as `fd.objectives.LangevinStein()`, to distill the divergence with; or a divergence, such
            as `ExactDivergence()`, which is used as it is. The default is `ExactDivergence()` in up to three dimensions and
            `LangevinStein()` in more.
        training: steps, batch size, learning rate, optimizer and held-out rows; `Training()` by default.
        tolerance: error of `log_prob` in nats that the solver may make. The fit chooses the smallest number of solver steps that
            keeps the error within it.
        checkpoint: folder in which the state is saved. The same call resumes from there and ends with the same weights.
        progress: whether to show progress bars.

    Returns:
        The density and a report. Ctrl-C keeps everything learned so far: it ends the running stage with a warning, and the
        report's `interrupted` lists the stages that were cut short or not run.

    Raises:
        TypeError, ValueError: if an argument is invalid. Raised before any work is done.
        TrainingDiverged: if a loss is not finite. The exception's `best` holds the best density up to then.

    Examples:
        >>> density, report = fd.fit_flow(jax.random.key(0), data)
        >>> print(report)
        >>> density.log_prob(data[:5])
    """
    path = CondOT() if path is None else path
    check_kind("fit_flow", "path", path, AbstractPath, "path=fd.paths.CondOT()")
    shared = support, weights, network, divergence, training, tolerance, checkpoint, progress
    return _Fit("fit_flow", key, data, context, *shared, encoder).on_path("flow", path, "velocity")


def fit_diffusion(
    key: Key,
    data: ArrayLike | Named,
    context: ArrayLike | Named | None = None,
    *,
    support: Support | None = None,
    weights: ArrayLike | None = None,
    path: AbstractPath | None = None,
    prediction: Prediction = "velocity",
    network: AbstractNetwork | None = None,
    encoder: Encoder | Mapping[str, Encoder] | None = None,
    divergence: AbstractDivergence | AbstractObjective | None = None,
    training: Training | None = None,
    tolerance: float = 0.01,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> tuple[FlowDensity, FitReport]:
    r"""Learn a density from data with a diffusion model.

    This is `fit_flow` on the path of a diffusion, and the network can predict any of the usual targets (Song et al. 2021,
    arXiv 2011.13456). The density is that of the probability-flow ODE.

    Args:
        key: JAX PRNG key.
        data: as in `fit_flow`.
        context: as in `fit_flow`.
        support: as in `fit_flow`.
        weights: as in `fit_flow`.
        path: Gaussian probability path to train on; `VariancePreserving()` by default.
        prediction: target of the network: "velocity", "noise", "data" or "score".
        network: as in `fit_flow`.
        encoder: as in `fit_flow`.
        divergence: as in `fit_flow`.
        training: as in `fit_flow`.
        tolerance: as in `fit_flow`.
        checkpoint: as in `fit_flow`.
        progress: as in `fit_flow`.

    Returns:
        The density and a report, as `fit_flow`.

    Raises:
        TypeError, ValueError, TrainingDiverged: as `fit_flow`.

    Examples:
        >>> density, report = fd.fit_diffusion(jax.random.key(0), data, prediction="noise")
        >>> density.sample_diffusion(key, (100,))
    """
    path = VariancePreserving() if path is None else path
    check_kind("fit_diffusion", "path", path, AbstractPath, "path=fd.paths.VariancePreserving()")
    check_choice("fit_diffusion", "prediction", prediction, Prediction, fix="velocity")
    shared = support, weights, network, divergence, training, tolerance, checkpoint, progress
    return _Fit("fit_diffusion", key, data, context, *shared, encoder).on_path("diffusion", path, prediction)


def fit_likelihood(
    key: Key,
    data: ArrayLike | Named,
    context: ArrayLike | Named | None = None,
    *,
    model: AbstractProbabilityFlow | None = None,
    support: Support | None = None,
    weights: ArrayLike | None = None,
    network: AbstractNetwork | None = None,
    divergence: AbstractDivergence | AbstractObjective | None = None,
    training: Training | None = None,
    tolerance: float = 0.01,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> tuple[FlowDensity, FitReport]:
    r"""Learn a density by maximum likelihood, as a continuous normalizing flow.

    Each step solves the ODE for a batch of rows and differentiates through the solve (Grathwohl et al. 2019, "FFJORD",
    arXiv 1810.01367). The divergence is exact in up to sixteen dimensions. In more it is estimated with a new Hutchinson probe
    for every row. A step takes far longer than a step of `fit_flow`, so this function is meant to improve the likelihood of an
    existing model in a short run. Without a `model` it starts from the fitted Gaussian.

    The states of the trained model no longer follow the Gaussian probability path: its `follows_path` is False.

    Args:
        key: JAX PRNG key.
        data: as in `fit_flow`.
        context: as in `fit_flow`.
        model: model to start from, such as `density.model` or a `VelocityField`; its `network` is trained.
        support: as in `fit_flow`; not allowed with `model`, which has its own.
        weights: as in `fit_flow`.
        network: as in `fit_flow`; not allowed with `model`, which has its own.
        divergence: as in `fit_flow`; used after the model is trained.
        training: as in `fit_flow`. The default is 1,000 steps of 256 rows with a peak learning rate of 2e-3, or 300 steps with
            2e-4 if a model is given. The distillation has its own defaults.
        tolerance: as in `fit_flow`.
        checkpoint: as in `fit_flow`.
        progress: as in `fit_flow`.

    Returns:
        The density and a report, as `fit_flow`. The losses of the stage "likelihood" are in nats per dimension of the whitened
        data.

    Raises:
        TypeError, ValueError, TrainingDiverged: as `fit_flow`.

    Examples:
        >>> tuned, report = fd.fit_likelihood(jax.random.key(1), data, model=density.model)
        >>> tuned.log_prob(data[:5])
    """
    shared = support, weights, network, divergence, training, tolerance, checkpoint, progress
    return _Fit("fit_likelihood", key, data, context, *shared).by_likelihood(model)


@dataclass(frozen=True)
class _Fit:
    """The arguments that all fits from data share, and the stages that the fits have in common.

    Raises:
        TypeError, ValueError: if an argument that can be checked without the data is unusable.
    """

    caller: str
    key: Key
    data: ArrayLike | Named
    context: ArrayLike | Named | None
    support: Support | None
    weights: ArrayLike | None
    network: AbstractNetwork | None
    divergence: AbstractDivergence | AbstractObjective | None
    training: Training | None
    tolerance: float
    checkpoint: str | os.PathLike[str] | None
    progress: bool
    encoder: Encoder | Mapping[str, Encoder] | None = None

    def __post_init__(self) -> None:
        kinds = AbstractDivergence | AbstractObjective
        check_key(self.caller, self.key)
        if self.divergence is not None:
            check_kind(self.caller, "divergence", self.divergence, kinds, "divergence = None")
        if isinstance(self.divergence, AbstractDivergence) and self.divergence.is_learned:
            raise ValueError(
                f"{self.caller} expected `divergence` as an objective or a divergence that is not learned; got a "
                f"{type(self.divergence).__name__}, which is only valid for the weights that it was learned with. "
                "Fix: divergence = None"
            )
        check_number(self.caller, "tolerance", self.tolerance, 0.0, fix=0.01, unit=" of nats")
        if self.network is not None:
            check_kind(self.caller, "network", self.network, AbstractNetwork, "network = None")
        check_training(self.caller, self.training)

    @property
    def options(self) -> Training:
        """Training options of the fit."""
        return check_training(self.caller, self.training)

    def divergence_for(self, dim: int) -> AbstractDivergence | AbstractObjective:
        """The requested divergence, or the objective to distill it with.

        The default is the exact divergence in few dimensions, where it costs less than twice a learned one and needs no
        training.
        """
        if self.divergence is not None:
            return self.divergence
        return ExactDivergence() if dim <= FEW_DIMENSIONS else LangevinStein()

    def on_path(self, stage: str, path: AbstractPath, prediction: Prediction) -> Found:
        """Fit the velocity of a model on a Gaussian probability path."""
        net_key, flow_key, finish_key = jr.split(self.key, 3)
        parts = self._prepared(net_key)
        model = GaussianFlow(path=path, prediction=prediction, **parts.shared)
        saved = self._checkpoint(model, parts.table)
        fitted = fit_velocity(
            flow_key, model, parts.table, self.options, stage=stage, progress=self.progress, checkpoint=saved
        )
        models = ((parts.with_encoders(trained), history, choice) for trained, history, choice in fitted)
        return last(
            self._densities(finish_key, models, parts.encoded, model.dim, saved, stage, parts.scaling.summary())
        )

    def by_likelihood(self, model: AbstractProbabilityFlow | None) -> Found:
        """Fit a model by maximum likelihood, from the fitted Gaussian or from a given model."""
        key = self.key
        if model is None:
            net_key, key = jr.split(key)
            parts = self._prepared(net_key)
            model, table = GaussianFlow(path=Trigonometric(), **parts.shared), parts.table
            columns, plan = parts.scaling.summary(), self.options.plan(1000, 256, 2e-3)
        else:
            check_flow_model(self.caller, model)
            for name, value in (("support", self.support), ("network", self.network)):
                if value is not None:
                    raise ValueError(
                        f"{self.caller} expected `model` or `{name}`, since a model has its own; got both. Fix: {name}=None"
                    )
            model = in_session(model)
            with activity("preparation", self.progress):
                table = whitened(
                    self.caller, model.scaling, model.context_scaling, self.data, self.context, self.weights
                )
            columns, plan = None, self.options.plan(300, 256, 2e-4)
        model = off_path(model)
        if isinstance(self.divergence, AbstractObjective):
            check_objective(self.caller, self.divergence, model)
        saved = self._checkpoint(model, table)
        train_key, finish_key = jr.split(key)
        trained = maximize_likelihood(train_key, model, table, plan, progress=self.progress, checkpoint=saved)
        models = ((model, history, None) for model, history in trained)
        return last(
            self._densities(finish_key, models, lambda model: (model, table), model.dim, saved, "likelihood", columns)
        )

    def _prepared(self, key: Key) -> Parts:
        with activity("preparation", self.progress):
            return prepare(
                self.caller, key, self.data, self.context, self.support, self.weights, self.network, self.encoder
            )

    def _checkpoint(self, model: AbstractProbabilityFlow, table: Sample) -> Checkpoint | None:
        inputs = self.key, model, table, *self.options.fingerprint(), self.divergence
        return open_checkpoint(self.caller, self.checkpoint, *inputs)

    def _densities(
        self,
        key: Key,
        models: Trained,
        finish: Callable[[AbstractProbabilityFlow], tuple[AbstractProbabilityFlow, Sample]],
        dim: int,
        saved: Checkpoint | None,
        stage: str,
        columns: str | None,
    ) -> Iterator[Found]:
        """Yield successively better densities: during training, then with their divergence, and then with their solver.

        `finish` returns the trained model, of `dim` dimensions, and its whitened table; `columns` describes their transforms.
        """
        chosen = self.divergence_for(dim)
        objective = chosen if isinstance(chosen, AbstractObjective) else None
        given = ExactDivergence() if isinstance(chosen, AbstractObjective) else chosen
        left = (SOLVER_STEPS,) if objective is None else ("divergence", "calibration", SOLVER_STEPS)
        choice = None
        if self.divergence is None and objective is None:
            choice = f"divergence: exact, which costs less than distillation in up to {FEW_DIMENSIONS} dimensions"

        def so_far(
            model: AbstractProbabilityFlow, history: History, reference: ReferenceChoice | None, *undone: str
        ) -> Found:
            report = FitReport(
                {stage: history},
                {stage: history.seconds},
                reference=reference,
                columns=columns,
                divergence=choice,
                interrupted=(*undone, *left),
            )
            return FlowDensity(model, divergence=given), report

        trained, history, reference = yield from relay(models, lambda found: so_far(*found, stage))
        model, table = finish(trained)
        bare, of_model = density, report = so_far(model, history, reference)
        yield density, report
        divergence_key, step_key = jr.split(key)
        if objective is not None:
            heads = fit_divergence_head(
                divergence_key,
                density.model,
                table,
                self.options,
                objective,
                progress=self.progress,
                checkpoint=saved,
            )

            def with_head(head: SteinDivergence, learned: FitReport) -> Found:
                return bare.with_divergence(head), of_model.with_divergence(learned, SOLVER_STEPS)

            learned = yield from relay(heads, lambda found: with_head(*found))
            density, report = with_head(*learned)
        yield self._with_solver(step_key, density, report, table)

    def _with_solver(self, key: Key, density: FlowDensity, report: FitReport, table: Sample) -> Found:
        started = time.monotonic()
        draws = self.options.plan(4000, 512).share(1000, 16, MAX_ROWS)
        with activity("choice of solver steps", self.progress):
            solver, errors = choose_steps(key, density, table, self.tolerance, draws)
        seconds = report.seconds | {"solver": time.monotonic() - started}
        cut = tuple(each for each in report.interrupted or () if each != SOLVER_STEPS) or None
        return density.with_solver(solver), dataclasses.replace(report, seconds=seconds, steps=errors, interrupted=cut)
