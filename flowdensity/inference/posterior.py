"""Amortized posteriors: the posterior of a numpyro model for every data set, learned once from its simulations."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import equinox as eqx
import jax.random as jr
import numpy as np
from numpyro.distributions import constraints

from .._blocks import blocks_of
from .._checks import check_count, check_key
from .._display import one_line
from .._typing import ArrayLike, Key
from ..data.draws import as_posterior
from ..data.sites import Sites
from ..data.tables import Table
from ..diagnostics.ranks import MIN_DRAWS, MIN_SIMULATIONS, Ranks, ranks_of
from ..distributions.flow import FlowDensity
from ..distributions.inputs import warn_again
from ..models.encoder_checks import check_encoder
from ..models.encoders import AbstractEncoder, DeepSet
from ..models.encoding import Encoder, Encoding, with_absent_rows
from ..training.fit import fit_flow
from ..training.report import FitReport
from ..training.training import Training
from .data import checked_data, without_some_rows
from .joint import JointModel, joint_model
from .refined import Refined, refine

CHECKED_AT_ONCE = 25
"""Number of data sets whose posteriors are drawn at once in a check."""
CHECK = 34
"""Number that is folded into the key of a check. It is larger than any number of keys that a fit splits its key into."""
FEWEST_SIMULATIONS = 2
"""Smallest number of simulations that a density can be learned from."""


@dataclass(frozen=True, eq=False)
class AmortizedPosterior:
    """The posterior of a numpyro model for every data set of the kind that it was learned from.

    Attributes:
        density: learned density of the latent sites given the observed sites, a conditional `FlowDensity` of named values.
        joint: the model, for `refine` and `check`.

    Examples:
        >>> amortized, _ = fd.fit_posterior(key, model, (observed,), observed="y", num_simulations=1000)
        >>> idata = amortized.draw(key, {"y": observed})
        >>> refined = amortized.refine(key, {"y": observed})
        >>> print(refined.summary())
    """

    density: FlowDensity
    joint: JointModel

    @classmethod
    def of(
        cls,
        density: FlowDensity,
        model: Callable,
        model_args: tuple = (),
        model_kwargs: Mapping[str, Any] | None = None,
        *,
        observed: str | Sequence[str],
        latents: str | Sequence[str] | None = None,
    ) -> "AmortizedPosterior":
        """The posterior of a model with a density that `fit_posterior` has learned, for example one that was loaded from a file.

        The arguments are those of `fit_posterior`.

        Examples:
            >>> amortized, _ = fd.fit_posterior(key, model, (observed,), observed="y", num_simulations=1000)
            >>> fd.save("posterior.flow", amortized.density)
            >>> again = fd.results.AmortizedPosterior.of(fd.load("posterior.flow"), model, (observed,), observed="y")
        """
        return cls(density, joint_model("AmortizedPosterior.of", model, model_args, model_kwargs, observed, latents))

    def given(self, data: Mapping[str, ArrayLike]) -> FlowDensity:
        """Return the learned posterior given a data set, as a density of the named latent sites.

        There is a warning if the data set is far from all simulations, or if its number of rows is outside the range of theirs.

        Args:
            data: value of each observed site by name, shape `(*batch, *shape)`. With an encoder of rows, a data set may have
                fewer or more rows than the simulations.

        Raises:
            TypeError, ValueError: if a site is missing or a value has the wrong shape.
        """
        density, values = self._fitted_to("given", data)
        warn_again(density.model)
        return density.given(values)

    def draw(self, key: Key, data: Mapping[str, ArrayLike], num_samples: int = 1000) -> Any:
        """Draw from the learned posterior given a data set.

        Args:
            key: JAX PRNG key.
            data: as in `given`, for a single data set.
            num_samples: number of draws.

        Returns:
            The draws in arviz's form, as one chain: `InferenceData`, or `DataTree` with arviz 1. The draws are independent, and
            R-hat needs several chains, so summarize them with `az.summary(idata, kind="stats")`.

        Examples:
            >>> amortized, _ = fd.fit_posterior(key, model, (observed,), observed="y", num_simulations=1000)
            >>> idata = amortized.draw(key, {"y": observed})
            >>> az.summary(idata, kind="stats")  # means and intervals, without the diagnostics of chains
        """
        caller = "AmortizedPosterior.draw"
        check_key(caller, key)
        num_samples = check_count(caller, "num_samples", num_samples, fix=1000)
        density = self.given(data)
        if density.batch_shape:
            raise ValueError(
                f"{caller} expected a single data set; got data sets with the batch shape {density.batch_shape}. "
                "Fix: posterior.given(data).sample(key, (num_samples,))"
            )
        return as_posterior(density.unpack(density.sample(key, (1, num_samples))))

    def refine(
        self, key: Key, data: Mapping[str, ArrayLike], num_samples: int = 1000, *, progress: bool = True
    ) -> Refined:
        """Correct the learned posterior of a data set to the exact posterior of the model.

        Ten times as many draws as wanted are weighted by the model's joint density, divided by the learned density with its exact
        divergence, with Pareto-smoothed importance sampling. The weights are used if the Pareto k is below its threshold and they
        keep as many effective draws as are wanted, or if they keep nine tenths of the draws. The result is then a sample in
        proportion to the weights. Otherwise NUTS samples the posterior, starting from these draws and in coordinates that they
        whiten.

        Args:
            key: JAX PRNG key.
            data: as in `given`, for a single data set.
            num_samples: number of draws of the result.
            progress: whether NUTS shows a bar.

        Returns:
            The exact posterior, and how it was obtained.

        Raises:
            ValueError: if latent sites were integrated out, so that the joint density of the others is not known; or if rows of
                the data are absent and the model has no term of its own for each row.

        Reference:
            Vehtari, Simpson, Gelman, Yao and Gabry 2024, "Pareto smoothed importance sampling", JMLR 25.
        """
        caller = "AmortizedPosterior.refine"
        check_key(caller, key)
        num_samples = check_count(caller, "num_samples", num_samples, fix=1000)
        if self.joint.nuisance:
            raise ValueError(
                f"{caller} expected a posterior of all latent sites, whose joint density the model gives; "
                f"{list(self.joint.nuisance)} were integrated out by simulation. Fix: posterior.check(key)"
            )
        density, values = self._fitted_to("refine", data)
        for name, value in values.items():
            shape = self.joint.observed[name].shape
            if value.shape != shape:
                raise ValueError(
                    f"{caller} expected one data set, with {name!r} of shape {shape} or fewer rows; got {np.shape(data[name])}. "
                    f"Fix: data = {{**data, {name!r}: numpy.resize(data[{name!r}], {shape})}}"
                )
            if np.isnan(value).any() and not self.joint.has_row_terms(name):
                raise ValueError(
                    f"{caller} expected {name!r} with all rows of the model's own data, since the model gives one log density "
                    f"for all of them; got {np.shape(data[name])}. Fix: posterior.draw(key, data)"
                )
        warn_again(density.model)
        return refine(key, density.given(values), self.joint, values, num_samples, progress)

    def check(self, key: Key, num_simulations: int = 500, num_samples: int = 200, *, progress: bool = True) -> Ranks:
        """Test the learned posterior on fresh simulations, by simulation-based calibration and by its expected coverage.

        Args:
            key: JAX PRNG key.
            num_simulations: number of simulated data sets.
            num_samples: number of draws for each of them.
            progress: whether to show a bar.

        Returns:
            Ranks of the true values, and the coverage of TARP, each with a test.

        Raises:
            TypeError: if `key` is not a key.
            ValueError: if a number is out of range.

        Examples:
            >>> amortized, _ = fd.fit_posterior(key, model, (observed,), observed="y", num_simulations=1000)
            >>> check = amortized.check(key, num_simulations=50)
            >>> print(check.summary())
            >>> axes = fd.plots.plot_ranks(check)
        """
        caller = "AmortizedPosterior.check"
        check_key(caller, key)
        num_simulations = check_count(caller, "num_simulations", num_simulations, least=MIN_SIMULATIONS, fix=500)
        num_samples = check_count(caller, "num_samples", num_samples, least=MIN_DRAWS, fix=200)
        # Another key than that of the fit, should it be the same: its simulations must not be used again.
        key = jr.fold_in(key, CHECK)
        simulate_key, rows_key, draw_key, rank_key = jr.split(key, 4)
        simulated = self.joint.simulate(simulate_key, num_simulations, progress)
        data = {name: simulated[name] for name in self.joint.observed}
        density, values = self._fitted_to("check", without_some_rows(rows_key, data, self._encoders))
        parts = []
        for number, rows in enumerate(blocks_of(num_simulations, CHECKED_AT_ONCE)):
            given = density.given({name: value[rows] for name, value in values.items()})
            parts.append(np.asarray(given.sample(jr.fold_in(draw_key, number), (num_samples,))))
        draws = density.unpack(np.concatenate(parts, axis=1)[:, :num_simulations])
        truths = {name: simulated[name] for name in self.joint.latents}
        return ranks_of(rank_key, {name: draws[name] for name in truths}, truths)

    @property
    def _encoders(self) -> dict[str, Encoder | None]:
        scaling = self.density.model.context_scaling
        encoders = scaling.encoders if isinstance(scaling, Encoding) else (None,) * len(self.joint.observed)
        return dict(zip(self.joint.observed, encoders, strict=True))

    def _fitted_to(self, method: str, data: Mapping[str, ArrayLike]) -> tuple[FlowDensity, dict[str, np.ndarray]]:
        """The density and the data with the same numbers of rows: absent rows are added to one or the other."""
        density, scaling = self.density, self.density.model.context_scaling
        values = checked_data(f"AmortizedPosterior.{method}", data, self.joint.observed, self._encoders)
        for name, encoder in self._encoders.items():
            if not isinstance(encoder, AbstractEncoder):
                continue
            shape = self.joint.observed[name].shape
            values[name] = with_absent_rows(values[name], shape[0], len(shape))
            assert isinstance(scaling, Encoding), "a site has an encoder"
            assert scaling.sites is not None, "a site has a name"
            rows = values[name].shape[-len(shape)]
            if rows > dict(zip(*scaling.sites, strict=True))[name][0]:
                scaling = scaling.with_rows(name, rows)
                model = eqx.tree_at(lambda m: m.context_scaling, density.model, scaling)
                density = FlowDensity(model, divergence=density.divergence, solver=density.solver)
        return density, values

    def __repr__(self) -> str:
        latents, observed = (", ".join(names) for names in (self.joint.latents, self.joint.observed))
        return one_line(self, f"of {latents} given {observed}")


def fit_posterior(
    key: Key,
    model: Callable,
    model_args: tuple = (),
    model_kwargs: Mapping[str, Any] | None = None,
    *,
    observed: str | Sequence[str],
    latents: str | Sequence[str] | None = None,
    num_simulations: int = 10_000,
    encoder: Encoder | Mapping[str, Encoder] | None = None,
    training: Training | None = None,
    progress: bool = True,
) -> tuple[AmortizedPosterior, FitReport]:
    """Learn the posterior of a numpyro model for every data set, from simulations of the model.

    Latent sites and data are drawn from the prior predictive distribution. `fit_flow` then learns the density of the latent
    sites given the data (neural posterior estimation; Papamakarios and Murray 2016, arXiv 1605.06376). For a new data set, the
    posterior takes a fraction of a second. `AmortizedPosterior.refine` corrects it to the exact posterior.

    Simulators that are not numpyro models: `fit_flow(key, theta, context=data, encoder=encoder)` learns the same density.

    Args:
        key: JAX PRNG key.
        model: numpyro model with proper priors. Its data may be passed or not; only their shape matters.
        model_args: arguments of the model.
        model_kwargs: keyword arguments of the model.
        observed: name of the observed site, or names of all observed sites.
        latents: names of the latent sites whose joint posterior is learned; all continuous latent sites by default. The others
            are integrated out by simulation.
        num_simulations: number of simulations.
        encoder: network that turns a data set into a vector, as in `fit_flow`. With an encoder of rows that has `fewest`, the
            posterior is learned for data sets with `fewest` rows up to all rows of the model.
        training: as in `fit_flow`.
        progress: whether to show progress bars.

    Returns:
        The posterior and the report of its fit.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if the model lacks an observed site, observes others, has an improper prior, a factor or a subsampled plate;
            if simulations are not finite; or if a latent site is in the plate of rows that a `DeepSet` encodes.

    Examples:
        >>> amortized, report = fd.fit_posterior(key, model, (observed,), observed="y", num_simulations=1000)
        >>> idata = amortized.draw(key, {"y": observed})
    """
    caller = "fit_posterior"
    check_key(caller, key)
    num_simulations = check_count(caller, "num_simulations", num_simulations, least=FEWEST_SIMULATIONS, fix=10_000)
    joint = joint_model(caller, model, model_args, model_kwargs, observed, latents)
    if encoder is not None:
        sites = Sites(tuple(joint.observed), tuple(site.shape for site in joint.observed.values()))
        by_site = check_encoder(
            caller, encoder, Table(np.zeros((2, sum(map(prod, sites.shapes)))), constraints.real, sites)
        )
        encoder = {name: each for name, each in zip(joint.observed, by_site, strict=True) if each is not None}
        _check_row_latents(caller, joint, encoder)
    simulate_key, rows_key, fit_key = jr.split(key, 3)
    simulated = joint.simulate(simulate_key, num_simulations, progress)
    for name, values in simulated.items():
        bad = np.sum(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
        if bad:
            raise ValueError(
                f"{caller} expected a model with finite simulations; got {bad} of {num_simulations} with values of {name!r} that "
                "are not finite. The prior allows parameters at which the model overflows: choose a narrower one. "
                f"Fix: numpyro.infer.Predictive(model, num_samples=1000)(jax.random.key(0))[{name!r}]"
            )
    data = {name: simulated[name] for name in joint.observed}
    density, report = fit_flow(
        fit_key,
        {name: simulated[name] for name in joint.latents},
        without_some_rows(rows_key, data, {} if encoder is None else encoder),
        support=joint.latents,
        encoder=encoder,
        training=training,
        progress=progress,
    )
    return AmortizedPosterior(density, joint), report.marginalizing(joint.nuisance)


def _check_row_latents(caller: str, joint: JointModel, encoders: Mapping[str, Encoder]) -> None:
    """Raise a ValueError if a latent site has a value for each of the rows whose order a `DeepSet` does not see."""
    for name, encoder in encoders.items():
        per_row = joint.latents_per_row(name) if isinstance(encoder, DeepSet) else []
        if per_row:
            raise ValueError(
                f"{caller} expected latent sites that do not depend on the order of the rows of {name!r}, since a DeepSet does "
                f"not see it; got {per_row} in the plate of the rows. {_without(tuple(joint.latents), per_row)}"
            )


def _without(latents: Sequence[str], per_row: Sequence[str]) -> str:
    """Code for a fix: leave out some latent sites, or use an encoder that sees the order of the rows."""
    others = [name for name in latents if name not in per_row]
    if not others:
        return "Sequence sees the order. Fix: encoder = fd.encoders.Sequence(key)"
    return f"If you leave them out, they are integrated out, and `refine` is not available. Fix: latents = {others}"
