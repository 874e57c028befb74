"""The joint density of a numpyro model: simulations of its latent and observed sites, and the log density at given values."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.distributions import biject_to, constraints
from numpyro.primitives import Messenger
from tqdm.auto import tqdm

from .._blocks import over_rows
from .._checks import check_kind, check_model
from .._numpyro import unwrapped
from .._typing import Array, Float, Key, Scalar
from ..data.interior import interior_bijection
from ..data.sites import split

SIMULATED_AT_ONCE = 1_000
"""Number of simulations in one call of the compiled model."""


@dataclass(frozen=True, eq=False)
class JointModel:
    """A numpyro model with bound arguments, whose observed sites can be simulated or conditioned on.

    Attributes:
        model: the model, which takes no arguments.
        latents: constraint of each latent site whose posterior is of interest, by name.
        observed: shape and dtype of the value of each observed site, by name.
        nuisance: names of the other latent sites, which simulations integrate out.
        free_shapes: shape of each latent site on the unconstrained line, by name.
    """

    model: Callable[[], Any]
    latents: dict[str, constraints.Constraint]
    observed: dict[str, jax.ShapeDtypeStruct]
    nuisance: tuple[str, ...]
    free_shapes: dict[str, tuple[int, ...]]

    def simulate(self, key: Key, count: int, progress: bool) -> dict[str, np.ndarray]:
        """Draw from the joint prior of latent and observed sites; each value has a leading axis of `count`."""
        names = (*self.latents, *self.observed)

        @jax.jit
        @jax.vmap
        def one(key: Key) -> dict[str, Array]:
            trace = _trace(handlers.uncondition(self.model), key)
            return {name: trace[name]["value"] for name in names}

        chunks, parts = -(-count // SIMULATED_AT_ONCE), []
        with tqdm(total=count, desc="simulations", unit="simulation", disable=not progress) as bar:
            for chunk in jr.split(key, chunks):
                parts.append(jax.device_get(one(jr.split(chunk, min(SIMULATED_AT_ONCE, count)))))
                bar.update(min(SIMULATED_AT_ONCE, count - bar.n))
        return {name: np.concatenate([part[name] for part in parts])[:count] for name in names}

    def log_density(self, latents: Mapping[str, Array], data: Mapping[str, Array]) -> Scalar:
        """Log density of the latent sites and the data together, in nats.

        Rows of the data that are NaN are absent: their terms are left out. They come after the others.
        """
        filled, present = {}, {}
        for name, values in data.items():
            gone = jnp.isnan(values)
            # The log density at an absent row must be finite, since its gradient would be NaN otherwise.
            first = values[:1] if values.ndim else values
            filled[name] = jnp.where(gone, first, values).astype(self.observed[name].dtype)
            present[name] = ~gone
        trace = _trace(handlers.condition(self.model, data={**latents, **filled}), jr.key(0))
        total = jnp.zeros(())
        for name, site in trace.items():
            if site["type"] != "sample":
                continue
            terms = site["fn"].log_prob(site["value"])
            if site["scale"] is not None:
                terms = site["scale"] * terms
            if name in present:
                seen = present[name].reshape(*terms.shape, -1).all(axis=-1)
                terms = jnp.where(seen, terms, 0.0)
            total = total + jnp.sum(terms)
        return total

    @cached_property
    def log_densities(self) -> Callable[[Mapping[str, Array], Mapping[str, Array]], Array]:
        """`log_density` for many draws of the latent sites and one data set, compiled once."""

        def many(latents: Mapping[str, Array], data: Mapping[str, Array]) -> Array:
            def one(*values: Array) -> Scalar:
                return self.log_density(dict(zip(latents, values, strict=True)), data)

            return over_rows(one, *latents.values())

        return jax.jit(many)

    def flattened(self, latents: Mapping[str, Array]) -> Float[Array, " free"]:
        """Latent values as a vector on the unconstrained line."""
        # The inverse is finite where a draw has been rounded to an edge of its support.
        free = [interior_bijection(support)._inverse(latents[name]) for name, support in self.latents.items()]
        return jnp.concatenate([jnp.reshape(value, -1) for value in free])

    def constrained(self, flat: Float[Array, " free"]) -> dict[str, Array]:
        """Undo `flattened`."""
        pieces = split(flat, tuple(self.free_shapes.values()))
        return {name: biject_to(self.latents[name])(piece) for name, piece in zip(self.latents, pieces, strict=True)}

    def whitened(self, data: Mapping[str, Array], location: Array, root: Array) -> None:
        """numpyro model of the posterior given some data, in coordinates with a given origin and root of the covariance."""
        white = numpyro.sample("white", dist.ImproperUniform(constraints.real_vector, (), location.shape))
        flat = location + root @ white
        values = self.constrained(flat)
        log_det = jnp.zeros(())
        for (name, support), piece in zip(
            self.latents.items(), split(flat, tuple(self.free_shapes.values())), strict=True
        ):
            log_det += jnp.sum(biject_to(support).log_abs_det_jacobian(piece, values[name]))
            numpyro.deterministic(name, values[name])
        numpyro.factor("joint", self.log_density(values, data) + log_det)

    def has_row_terms(self, name: str) -> bool:
        """Whether the log density of an observed site has one term for each row, so that terms of absent rows can be left out."""
        shape, dtype = self.observed[name].shape, self.observed[name].dtype

        def terms() -> Array:
            site = _trace(handlers.uncondition(self.model), jr.key(0))[name]
            return site["fn"].log_prob(jnp.zeros(shape, dtype))

        return bool(shape) and jax.eval_shape(terms).shape[:1] == shape[:1]

    def latents_per_row(self, name: str) -> list[str]:
        """Latent sites of interest in the plate of the rows of an observed site."""
        trace = _trace(handlers.uncondition(self.model), jr.key(0))
        first = -len(trace[name]["fn"].batch_shape)
        plates = {frame.name for frame in trace[name]["cond_indep_stack"] if frame.dim == first}
        return [
            latent for latent in self.latents if plates & {frame.name for frame in trace[latent]["cond_indep_stack"]}
        ]


def joint_model(
    caller: str,
    model: Any,
    model_args: tuple,
    model_kwargs: Mapping[str, Any] | None,
    observed: str | Sequence[str],
    latents: str | Sequence[str] | None,
) -> JointModel:
    """Find the sites of a model and check that it can be simulated.

    Raises:
        TypeError: if the model cannot be called.
        ValueError: if a site is missing, discrete or has no proper distribution; if another site is observed; or if the support
            of a latent site depends on other sites.
    """
    check_model(caller, "model", model)
    check_kind(caller, "model_args", model_args, tuple, "model_args = (model_args,)")
    _check_call(caller, model, model_args, model_kwargs)
    bound = partial(model, *model_args, **({} if model_kwargs is None else dict(model_kwargs)))
    proper = _ProperPriors(bound, caller)
    given = {
        name: site
        for name, site in _trace(proper, jr.key(0)).items()
        if site["type"] == "sample" and site["is_observed"]
    }
    traces = [_trace(handlers.uncondition(proper), jr.key(number)) for number in range(2)]
    sites = {name: site for name, site in traces[0].items() if site["type"] == "sample"}
    seen = (observed,) if isinstance(observed, str) else tuple(observed)
    _check_sites(caller, traces[0], sites, given, seen)
    every = {name: site for name, site in sites.items() if name not in seen}
    read = {name: sites[name] for name in seen}
    of_interest = _latents(caller, every, latents)
    for name in of_interest:
        supports = [trace[name]["fn"].support for trace in traces]
        if not _equal(*supports):
            raise ValueError(
                f"{caller} expected a latent site {name!r} whose support is the same in every simulation; got {supports[0]} and "
                f"{supports[1]}. Learn the position within the support instead, with a site on the unit interval. "
                f"Fix: latents = {[other for other in of_interest if other != name]}"
            )
    return JointModel(
        bound,
        {name: every[name]["fn"].support for name in of_interest},
        {
            name: jax.ShapeDtypeStruct(jnp.shape(site["value"]), jnp.result_type(site["value"]))
            for name, site in read.items()
        },
        tuple(name for name in every if name not in of_interest),
        {
            name: biject_to(every[name]["fn"].support).inverse_shape(jnp.shape(every[name]["value"]))
            for name in of_interest
        },
    )


def _check_call(caller: str, model: Callable, model_args: tuple, model_kwargs: Mapping[str, Any] | None) -> None:
    """Raise a TypeError unless the model can be called with the arguments."""
    try:
        inspect.signature(model).bind(*model_args, **({} if model_kwargs is None else model_kwargs))
    except TypeError as error:
        raise TypeError(
            f"{caller} expected `model_args` and `model_kwargs` with which the model can be called; got {error}. Data that the "
            "model needs may have any values of the right shape. Fix: model_args = (jax.numpy.zeros(10),)"
        ) from error


def _trace(model: Callable[[], Any], key: Key) -> dict[str, Any]:
    """Sites of a model, hidden from the handlers of a model that is running."""
    with handlers.block():
        return handlers.trace(handlers.seed(model, key)).get_trace()


class _ProperPriors(Messenger):
    """Handler that raises a ValueError at a site with an improper prior, which cannot be sampled."""

    def __init__(self, fn: Callable[[], Any], caller: str):
        super().__init__(fn)
        self.caller = caller

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "sample" and isinstance(unwrapped(msg["fn"]), dist.ImproperUniform):
            raise ValueError(
                f"{self.caller} expected proper priors, from which parameters can be drawn; got an improper one at "
                f"{msg['name']!r}. Fix: dist.Normal(0.0, 10.0)"
            )


def _check_sites(
    caller: str, trace: dict[str, Any], sites: dict[str, Any], given: dict[str, Any], seen: tuple[str, ...]
) -> None:
    missing = [name for name in seen if name not in sites]
    if missing or not seen:
        raise ValueError(
            f"{caller} expected `observed` as names of sample sites of the model, which are {list(sites)}; got {list(seen)}. "
            f"Fix: observed = {[next(reversed(sites), 'y')]}"
        )
    factors = [name for name, site in given.items() if isinstance(unwrapped(site["fn"]), dist.Unit)]
    if factors:
        raise ValueError(
            f"{caller} expected a model that can simulate its data; got the factor {factors[0]!r}, which has a log density but "
            "cannot be simulated. Write it as sample statements. Fix: model = numpyro.handlers.block(model, hide="
            f"{factors})"
        )
    others = [name for name in given if name not in seen]
    if others:
        raise ValueError(
            f"{caller} expected every site that the model observes in `observed`; got {list(seen)}, and the model also observes "
            f"{others}. Fix: observed = {[*seen, *others]}"
        )
    for name, site in given.items():
        if site.get("_control_flow_done"):
            raise ValueError(
                f"{caller} expected a model that simulates {name!r}; it is observed within a `scan`, whose later steps then "
                f"follow the data instead of the simulation. Call the model without its data. "
                "Fix: model_args = (); model_kwargs = {}"
            )
        shape, simulated = jnp.shape(site["value"]), jnp.shape(sites[name]["value"])
        if shape != simulated:
            raise ValueError(
                f"{caller} expected a model that simulates {name!r} with the shape of its data, {shape}; got {simulated}. Put "
                f"the site into a plate of the size of the data. Fix: numpyro.plate('rows', {shape[0] if shape else 1})"
            )
    for name, site in trace.items():
        if site["type"] == "plate" and len(site["value"]) < site["args"][0]:
            raise ValueError(
                f"{caller} expected plates without subsampling, since a posterior given a part of the data is another one; got "
                f"{len(site['value'])} of {site['args'][0]} in {name!r}. Fix: numpyro.plate({name!r}, {site['args'][0]})"
            )


def _latents(caller: str, every: dict[str, Any], latents: str | Sequence[str] | None) -> tuple[str, ...]:
    """Names of the latent sites of interest, in the order of the model."""
    continuous = [name for name, site in every.items() if not site["fn"].support.is_discrete]
    if not continuous:
        raise ValueError(
            f"{caller} expected a model with continuous latent sites; got the latent sites {list(every)}. "
            "Fix: numpyro.infer.MCMC(numpyro.infer.DiscreteHMCGibbs(numpyro.infer.NUTS(model)), num_warmup=500, num_samples=500)"
        )
    if latents is None:
        return tuple(continuous)
    wanted = (latents,) if isinstance(latents, str) else tuple(latents)
    wrong = [name for name in wanted if name not in continuous]
    if wrong or not wanted:
        raise ValueError(
            f"{caller} expected `latents` as names of continuous latent sites, which are {continuous}; got {list(wanted)}. "
            f"Fix: latents = {[name for name in wanted if name in continuous] or continuous}"
        )
    return tuple(name for name in every if name in wanted)


def _equal(one: constraints.Constraint, other: constraints.Constraint) -> bool:
    ours, theirs = (jax.tree.leaves(each) for each in (one, other))
    return (
        type(one) is type(other)
        and len(ours) == len(theirs)
        and all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
    )
