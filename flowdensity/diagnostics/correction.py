"""Log ratios of the exact to the sampled log density of a model at posterior draws.

At the site of a learned density, the posterior was sampled with $\\log \\tilde p$, which has the errors of a learned divergence,
an amortization and a solver. The posterior under the exact density $p$ of the same flow is the sampled posterior times
$\\prod p/\\tilde p$ over these sites. All other factors of the model cancel.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
from numpyro import handlers
from tqdm.auto import tqdm

from .._blocks import blocks_of
from .._checks import check_model
from .._numpyro import rewrapped, unwrapped
from .._typing import Array, Bool, Float, Scalar
from ..distributions.checks import check_learned
from ..distributions.learned import AbstractLearnedDensity, exact_density

Draw: TypeAlias = Mapping[str, Any]
"""Values of all latent sites in one draw."""
Learned: TypeAlias = AbstractLearnedDensity

MAX_TANGENTS = 32_768
"""Maximum number of Jacobian-vector products in one batch. It bounds the memory of exact divergences."""


@dataclass(frozen=True)
class Groups:
    """Plates that contain every site of a model, and their axes.

    Attributes:
        names: names of the plates.
        dims: their dimensions as negative indices of the batch shape of a site, the leftmost first.
        shape: their sizes.
    """

    names: tuple[str, ...] = ()
    dims: tuple[int, ...] = ()
    shape: tuple[int, ...] = ()

    def summed(self, values: Array) -> Array:
        """Sum values whose last axes are a site's batch axes over all axes except those of the groups."""
        return values.sum([axis for axis in range(-values.ndim, 0) if axis not in self.dims])

    def axes(self, event_dim: int) -> tuple[int, ...]:
        """Return the groups' axes in a value with `event_dim` event axes, as negative indices."""
        return tuple(dim - event_dim for dim in self.dims)


@dataclass(frozen=True, eq=False)
class Correction:
    """A model with bound arguments, and the exact densities for some of its sites.

    Attributes:
        model: the model, which takes no arguments.
        targets: exact density by site, without a context.
        errors: description, by site, of the errors of the sampled density that the exact density does not have.
        latent: shape and event dimension of the value of each latent site.
        groups: plates that contain every site; `independent` tests whether the posterior factorizes over them.
        shared: deterministic sites in these plates, with their event dimensions.
        tangents: number of Jacobian-vector products for the exact divergence of one draw in each step of the solver.
    """

    model: Callable[[], Any]
    targets: dict[str, AbstractLearnedDensity]
    errors: dict[str, str]
    latent: dict[str, tuple[tuple[int, ...], int]]
    groups: Groups
    shared: dict[str, int] = field(default_factory=dict)
    tangents: int = 1

    @property
    def chunk(self) -> int:
        """Number of draws that are corrected at once."""
        return max(1, MAX_TANGENTS // self.tangents)

    def log_ratios(self, draw: Draw) -> dict[str, Array]:
        """Log ratio of the exact to the sampled density by site, in nats, with the site's batch shape.

        Masks and scales of the site apply.
        """
        trace = self._trace(draw)
        return {name: _log_ratio(trace[name], target) for name, target in self.targets.items()}

    def total(self, draw: Draw) -> Scalar:
        """Log ratio of the exact to the sampled posterior density, in nats, up to a constant."""
        return sum((jnp.sum(ratio) for ratio in self.log_ratios(draw).values()), start=jnp.zeros(()))

    def by_group(self, draw: Draw) -> Float[Array, "*groups"]:
        """Log ratio of each group, for independent groups."""
        return sum(map(self.groups.summed, self.log_ratios(draw).values()), start=jnp.zeros(self.groups.shape))

    def deterministic(self, draw: Draw) -> dict[str, Array]:
        """Compute the values of the deterministic sites."""
        return {name: site["value"] for name, site in self._trace(draw).items() if site["type"] == "deterministic"}

    def independent(self, pairs: Sequence[tuple[Draw, Draw]]) -> tuple[bool, dict[str, int]]:
        """Test whether groups are independent a posteriori, by mixing the groups of two draws.

        If the joint density factorizes, the terms of a group do not depend on the values of other groups. Pair number i takes
        each group from one of its two draws, according to the i-th bit of the group's index. Any two groups therefore come from
        different draws in at least one pair.

        Args:
            pairs: pairs of draws, as many as `bits`.

        Returns:
            Whether the groups are independent, and the deterministic sites that also factorize, with their event dimensions.
        """
        terms = jax.jit(self._terms)
        count = int(np.prod(self.groups.shape))
        parted, values = True, dict.fromkeys(self.shared, True)
        for bit, (one, other) in enumerate(pairs):
            chosen = (np.arange(count) >> bit & 1).astype(bool).reshape(self.groups.shape)
            mixed = {
                name: jnp.where(self._mask(chosen, *self.latent[name]), one[name], other[name]) for name in self.latent
            }
            (first, values_1), (second, values_2), (both, values_3) = terms(one), terms(other), terms(mixed)
            parted &= _alike(both, jnp.where(chosen, first, second))
            for name, event_dim in self.shared.items():
                mask = self._mask(chosen, values_3[name].shape, event_dim)
                values[name] &= _alike(values_3[name], jnp.where(mask, values_1[name], values_2[name]))
        return parted, {name: self.shared[name] for name, same in values.items() if same}

    @property
    def bits(self) -> int:
        """Number of bits of the largest index of a group."""
        return (int(np.prod(self.groups.shape)) - 1).bit_length()

    def _trace(self, draw: Draw) -> dict[str, Any]:
        latent = {name: draw[name] for name in self.latent}
        return _traced(handlers.substitute(self.model, latent))

    def _terms(self, draw: Draw) -> tuple[Array, dict[str, Array]]:
        """Terms of the sampled joint log density by group, and the values of the deterministic sites in the plates."""
        trace = self._trace(draw)
        terms = [_scaled(site, site["fn"].log_prob(site["value"])) for site in _samples(trace).values()]
        parts = sum(map(self.groups.summed, terms), start=jnp.zeros(self.groups.shape))
        return parts, {name: trace[name]["value"] for name in self.shared}

    def _mask(
        self, chosen: Bool[np.ndarray, "*groups"], shape: tuple[int, ...], event_dim: int
    ) -> Bool[np.ndarray, "..."]:
        """Reshape `chosen` to broadcast against a value, with size 1 for its other axes."""
        sizes = [1] * len(shape)
        for axis, size in zip(self.groups.axes(event_dim), self.groups.shape, strict=True):
            sizes[axis] = size
        return chosen.reshape(sizes)


def correction(
    caller: str,
    model: Callable,
    model_args: tuple,
    model_kwargs: Mapping[str, Any] | None,
    exact: Mapping[str, Learned],
) -> Correction:
    """Check a model and the exact densities of some of its sites by tracing shapes only.

    Args:
        caller: name of the public function for errors.
        model: the numpyro model that was sampled.
        model_args: its arguments.
        model_kwargs: its keyword arguments.
        exact: by name of a latent or observed site, the density whose exact log density replaces the sampled one.

    Raises:
        TypeError: if `exact` is not a mapping to learned densities.
        ValueError: if a site does not exist or has no learned density with the same events, or if the model subsamples at random.
    """
    check_model(caller, "model", model)
    bound = partial(model, *model_args, **({} if model_kwargs is None else model_kwargs))
    if not isinstance(exact, Mapping) or not exact:
        came = "exact" if isinstance(exact, AbstractLearnedDensity) else "density"
        raise TypeError(
            f"{caller} expected `exact` to map names of sites to densities; got "
            f"{'an empty ' if isinstance(exact, Mapping) else ''}{type(exact).__name__}. "
            f"Fix: {_exact_line(_trace_of_shapes(bound), (), came)}"
        )
    for name, density in exact.items():
        fix = f"exact = {{**exact, {name!r}: density}}"
        check_learned(caller, f"exact[{name!r}]", density, fix)
    targets = {name: exact_density(density) for name, density in exact.items()}
    found: list[Correction] = []
    # Sites are described inside `eval_shape`, since the values of a scan cannot be inspected outside of it.
    jax.eval_shape(lambda: found.append(_described(caller, bound, targets)))
    return found[0]


def _described(caller: str, model: Callable[[], Any], targets: dict[str, AbstractLearnedDensity]) -> Correction:
    """Trace a model without arguments, check its sites and return its `Correction`."""
    trace = _traced(model)
    for name, site in trace.items():
        if site["type"] == "plate" and site["kwargs"].get("rng_key") is not None:
            raise ValueError(
                f"{caller} expected a model without random subsampling; plate {name!r} subsamples its rows, and the rows that "
                "the posterior was sampled with are unknown. "
                f"Fix: model = numpyro.handlers.substitute(model, {{{name!r}: jax.numpy.arange({site['value'].shape[0]})}})"
            )
    for name, target in targets.items():
        _check_target(caller, name, trace, target, [other for other in targets if other != name])
    latent = {name: site for name, site in _samples(trace).items() if not site["is_observed"]}
    groups = _groups(trace)
    return Correction(
        model=model,
        targets=targets,
        errors={name: _errors(unwrapped(trace[name]["fn"]), target) for name, target in targets.items()},
        latent={name: (site["value"].shape, site["fn"].event_dim) for name, site in latent.items()},
        groups=groups,
        shared=_shared(trace, groups),
        tangents=sum(max(1, int(np.prod(trace[name]["fn"].shape()))) for name in targets),
    )


def over_draws(function: Callable[[Draw], Any], draws: Draw, chunk: int, label: str, progress: bool) -> Any:
    """Map a function over draws in chunks.

    Args:
        function: function of one draw. It is compiled once.
        draws: arrays by site, each with one leading axis of draws.
        chunk: number of draws in one batch.
        label: label of the progress bar.
        progress: whether to show the bar.

    Returns:
        The results as numpy arrays, with one leading axis of draws.
    """
    count = len(next(iter(draws.values())))
    chunk = min(chunk, count)
    compiled = jax.jit(jax.vmap(function))
    done = []
    with tqdm(total=count, desc=label, unit="draw", disable=not progress) as bar:
        for rows in blocks_of(count, chunk):
            done.append(jax.device_get(compiled({name: jnp.asarray(values[rows]) for name, values in draws.items()})))
            bar.update(min(chunk, count - bar.n))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *done)


def _log_ratio(site: dict[str, Any], target: AbstractLearnedDensity) -> Array:
    fn, value = site["fn"], site["value"]
    return _scaled(site, _swapped(fn, target).log_prob(value) - fn.log_prob(value))


def _swapped(fn: Any, target: AbstractLearnedDensity) -> dist.Distribution:
    """Replace the learned density in a site's distribution by `target`, given the same context."""
    context = unwrapped(fn).context
    if context.shape[-1] > 0:
        target = target.given(context.reshape(*context.shape[:-1], *target.context_shape))
    return rewrapped(fn, target)


def _scaled(site: dict[str, Any], values: Array) -> Array:
    return values if site["scale"] is None else site["scale"] * values


def _samples(trace: dict[str, Any]) -> dict[str, Any]:
    return {name: site for name, site in trace.items() if site["type"] == "sample"}


def _traced(model: Callable[[], Any]) -> dict[str, Any]:
    # `scan` needs a key, and so do sites without a substituted value.
    return handlers.trace(handlers.seed(model, jr.key(0))).get_trace()


def _check_target(
    caller: str, name: str, trace: dict[str, Any], target: AbstractLearnedDensity, others: Sequence[str]
) -> None:
    """Check that the exact density fits the density of the model at a site; `others` are the other sites to correct."""
    if name not in trace or trace[name]["type"] not in ("sample", "deterministic"):
        raise ValueError(
            f"{caller} expected `exact` to name sites of `model`; got {name!r}, but the sites are {list(_samples(trace))}. "
            f"Fix: {_exact_line(trace, others)}"
        )
    if trace[name]["type"] == "deterministic":
        raise ValueError(
            f"{caller} expected site {name!r} to have a log density; it is deterministic, as under FlowReparam or sample_sites. "
            "A change of variables uses no divergence, so only the solver could be corrected. For sample_sites, use the name of "
            f"the joint site. Fix: {_exact_line(trace, others)}"
        )
    sampled = unwrapped(trace[name]["fn"])
    if not isinstance(sampled, AbstractLearnedDensity):
        raise ValueError(
            f"{caller} expected site {name!r} to have a FlowDensity or an AmortizedDensity; got {type(sampled).__name__}. "
            f"Fix: {_exact_line(trace, others)}"
        )
    for what, had, has in (
        ("events of shape", sampled.event_shape, target.event_shape),
        ("contexts of shape", sampled.context_shape, target.context_shape),
        ("names", sampled.sites, target.sites),
    ):
        if had != has:
            raise ValueError(
                f"{caller} expected `exact[{name!r}]` to have {what} {had}, as the model's density at that site; got {has}. "
                f"Fix: exact = {{**exact, {name!r}: density}}"
            )


def _exact_line(trace: dict[str, Any], others: Sequence[str], density: str = "density") -> str:
    """Code for a fix: name sites with a learned density. If there are none, NUTS samples the exact posterior anyway."""
    learned = [
        name for name, site in _samples(trace).items() if isinstance(unwrapped(site["fn"]), AbstractLearnedDensity)
    ]
    kept = [name for name in others if name in learned]
    if kept:
        return f"exact = {{name: exact[name] for name in {kept}}}"
    if learned:
        return f"exact = {{{learned[0]!r}: {density}}}"
    return "mcmc = numpyro.infer.MCMC(numpyro.infer.NUTS(model), num_warmup=500, num_samples=500); mcmc.run(key)"


def _trace_of_shapes(model: Callable[[], Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    jax.eval_shape(lambda: found.update(_traced(model)))
    return found


def _errors(sampled: Any, target: AbstractLearnedDensity) -> str:
    """Name the errors of the sampled density that the exact density does not have."""
    named = {
        "amortization": sampled.is_amortized,
        f"divergence ({type(sampled.divergence).__name__})": not sampled.divergence.is_exact,
        "solver": not eqx.tree_equal(sampled.solver, target.solver),
    }
    return ", ".join(what for what, there in named.items() if there) or "nothing: it was exact"


def _frames(site: dict[str, Any]) -> set[Any]:
    return set(site["cond_indep_stack"])


def _groups(trace: dict[str, Any]) -> Groups:
    """Find the plates that contain every sample site, latent or observed."""
    sites = list(_samples(trace).values())
    common = set.intersection(*map(_frames, sites)) if sites else set()
    frames = sorted((frame for frame in common if frame.size > 1), key=lambda frame: frame.dim)
    return Groups(*(tuple(getattr(frame, part) for frame in frames) for part in ("name", "dim", "size")))


def _shared(trace: dict[str, Any], groups: Groups) -> dict[str, int]:
    """Find the deterministic sites whose values have the axes of all groups, and their event dimensions."""
    found = {}
    for name, site in trace.items():
        names = {frame.name for frame in site.get("cond_indep_stack", ())}
        if not groups.names or site["type"] != "deterministic" or not set(groups.names) <= names:
            continue
        shape = jnp.shape(site["value"])
        # numpyro does not record the event dimension of a deterministic site; the axes of its plates lead.
        event_dim = len(shape) - max(-frame.dim for frame in site["cond_indep_stack"])
        if event_dim >= 0 and tuple(shape[axis] for axis in groups.axes(event_dim)) == groups.shape:
            found[name] = event_dim
    return found


def _alike(one: Array, other: Array) -> bool:
    """Return whether two arrays agree up to rounding.

    The tolerance is tight, because a dependence between groups is a small part of the log density if there are many
    observations.
    """
    if not jnp.issubdtype(one.dtype, jnp.inexact):
        return bool(jnp.array_equal(one, other))
    tolerance = 16.0 * float(jnp.finfo(one.dtype).eps)
    return bool(jnp.allclose(one, other, rtol=tolerance, atol=tolerance, equal_nan=True))
