"""Sampling the posterior under an exact density, with proposals from a sampler of the posterior under a learned density."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
from numpyro.infer import HMC
from numpyro.infer.mcmc import MCMCKernel
from numpyro.util import is_prng_key

from .._checks import check_count
from .._typing import Array, Bool, Float, Int, Key, Scalar
from .correction import Correction, Learned, correction

POSITION_FIELDS = ("z", "z_grad", "potential_energy")
"""Fields of the inner sampler's state that contain its position."""


class DelayedState(NamedTuple):
    """State of a chain of `DelayedAcceptance`. For vectorized chains, all fields except `i` have an axis of chains.

    Attributes:
        i: number of transitions, including warm-up.
        inner: state of the sampler that makes the proposals.
        log_ratio: log ratio of the exact to the sampled posterior in nats, up to a constant; 0 until the end of warm-up.
        accept: whether the last proposal was accepted; always true during warm-up.
        mean_accept_prob: mean acceptance probability since warm-up.
        diverging: whether a transition of the inner sampler for the last proposal diverged.
        rng_key: JAX PRNG key.
    """

    i: Int[Array, ""]
    inner: Any
    log_ratio: Float[Array, "*chains"]
    accept: Bool[Array, "*chains"]
    mean_accept_prob: Float[Array, "*chains"]
    diverging: Bool[Array, "*chains"]
    rng_key: Key

    @property
    def z(self) -> Any:
        """Unconstrained values of the latent sites."""
        return self.inner.z

    @property
    def potential_energy(self) -> Array:
        """Potential energy of the posterior of the inner sampler, in nats."""
        return self.inner.potential_energy


class DelayedAcceptance(MCMCKernel):
    r"""HMC or NUTS with a learned density, corrected to the exact density by one evaluation of it for each draw.

    A few transitions of the inner sampler make a proposal $z'$. They are reversible with respect to the posterior $\tilde\pi$
    under the learned density. The proposal is accepted with probability $\min(1, e^{r(z') - r(z)})$, where r is the log ratio of
    the exact to the learned density at the corrected sites. This leaves the posterior under the exact density invariant for any
    error of the learned density. A large error lowers the acceptance rate, which is the mean of the extra field `accept`.

    If the learned density has much lighter tails than the exact one, a chain gets stuck in the tails. Short trajectories help,
    since their proposals are near. Sampling with the exact density itself always works. Like `reweight`, this sampler corrects
    the divergence, the amortization and the solver, but not the difference between the flow and its data.

    During warm-up all proposals are accepted, each after one transition, and the inner sampler adapts to its own posterior.

    Args:
        kernel: a `numpyro.infer.NUTS` or `HMC` of a model with the learned density.
        exact: the exact density by name of a latent or observed site, as in `reweight`.
        steps: number of transitions of the inner sampler for each proposal. They do not evaluate the exact density. More of them
            pay off if the exact density is expensive and the draws of the inner sampler are correlated.

    Raises:
        TypeError: if `kernel` is not HMC or NUTS with a model, or `exact` contains no learned densities.
        ValueError: if `steps` is not an integer of at least 1; at the start of a run, if a site of `exact` has no learned density
            in the model.

    Reference:
        Christen and Fox 2005, "Markov chain Monte Carlo using an approximation"; Liu 2001, "Monte Carlo Strategies in Scientific
        Computing", section 9.4.3, on surrogate transitions.

    Examples:
        >>> finer = density.with_solver(fd.FixedStep(steps=32))
        >>> mcmc = MCMC(fd.DelayedAcceptance(NUTS(model), exact={"theta": finer}), num_warmup=500, num_samples=1000)
        >>> mcmc.run(key, y=observed)
        >>> mcmc.get_extra_fields()["accept"].mean()
    """

    def __init__(self, kernel: HMC, exact: Mapping[str, Learned], *, steps: int = 1):
        if not isinstance(kernel, HMC) or kernel.model is None:
            raise TypeError(
                f"DelayedAcceptance expected `kernel` to be NUTS or HMC with a model; got {type(kernel).__name__}. "
                "Fix: kernel = numpyro.infer.NUTS(model)"
            )
        self.kernel = kernel
        self.exact = exact
        self.steps = check_count("DelayedAcceptance", "steps", steps, fix=1)
        self._num_warmup = 0
        self._several = False
        # numpyro initializes a kernel again if this is None, as after pickling.
        self._sample_fn = None

    @property
    def model(self) -> Any:
        """The model of the inner sampler."""
        return self.kernel.model

    @property
    def sample_field(self) -> str:
        return "z"

    @property
    def default_fields(self) -> Any:
        return ("z", "diverging", "accept")

    def init(
        self, rng_key: Key, num_warmup: int, init_params: Any, model_args: tuple, model_kwargs: dict[str, Any]
    ) -> DelayedState:
        self._several = not is_prng_key(rng_key)
        corrected = self._correction(model_args, model_kwargs)
        self._num_warmup = num_warmup
        key, inner_key = self._keys(rng_key, 2)
        inner = self.kernel.init(inner_key, num_warmup, init_params, model_args, model_kwargs)
        self._sample_fn = self.kernel._sample_fn
        missing = [name for name in corrected.latent if name not in inner.z]
        if missing:
            raise ValueError(
                f"DelayedAcceptance expected `kernel` to sample every latent site of the model; {missing} are summed over. "
                "Use `kernel` directly; its model may contain the exact density. Fix: kernel"
            )
        zeros = jnp.zeros(len(rng_key) if self._several else (), float)
        ratio = zeros if num_warmup else jax.jit(lambda z: self._log_ratio(z, model_args, model_kwargs))(inner.z)
        return DelayedState(
            i=jnp.zeros((), int),
            inner=inner,
            log_ratio=ratio,
            accept=zeros == 0.0,
            mean_accept_prob=zeros,
            diverging=zeros != 0.0,
            rng_key=key,
        )

    def sample(self, state: DelayedState, model_args: tuple, model_kwargs: dict[str, Any]) -> DelayedState:
        def step(_: Any, carried: tuple[Any, Array]) -> tuple[Any, Array]:
            moved = self.kernel.sample(carried[0], model_args, model_kwargs)
            return moved, carried[1] | moved.diverging

        key, inner_key, accept_key = self._keys(state.rng_key, 3)
        warming = state.i < self._num_warmup
        start = (state.inner._replace(rng_key=inner_key), jnp.zeros_like(state.diverging))
        proposal, diverging = jax.lax.fori_loop(0, jnp.where(warming, 1, self.steps), step, start)
        # The chain starts from the last state of the warm-up.
        ratio = jax.lax.cond(
            state.i + 1 < self._num_warmup,
            lambda _: state.log_ratio,
            lambda z: self._log_ratio(z, model_args, model_kwargs),
            proposal.z,
        )
        gain = ratio - state.log_ratio
        accept = warming | (jnp.log(self._each(jr.uniform)(accept_key)) < gain)
        # A rejected proposal restores the position, but not the counters of the inner sampler.
        place = {
            name: jax.tree.map(partial(_where, accept), getattr(proposal, name), getattr(state.inner, name))
            for name in POSITION_FIELDS
        }
        probability = jnp.where(warming | jnp.isnan(gain), 0.0, jnp.exp(jnp.minimum(gain, 0.0)))
        count = jnp.maximum(1, state.i - self._num_warmup + 1)
        return DelayedState(
            i=state.i + 1,
            inner=proposal._replace(**place),
            log_ratio=jnp.where(accept, ratio, state.log_ratio),
            accept=accept,
            mean_accept_prob=state.mean_accept_prob + (probability - state.mean_accept_prob) / count,
            diverging=diverging,
            rng_key=key,
        )

    def postprocess_fn(self, model_args: tuple, model_kwargs: dict[str, Any]) -> Any:
        return self.kernel.postprocess_fn(model_args, model_kwargs)

    def get_diagnostics_str(self, state: DelayedState) -> Any:
        return f"{self.kernel.get_diagnostics_str(state.inner)}; accepted {state.mean_accept_prob:.2f}"

    def _each(self, function: Any) -> Any:
        """Return a function of one chain, vectorized if chains are in one array."""
        return jax.vmap(function) if self._several else function

    def _keys(self, key: Key, count: int) -> tuple[Key, ...]:
        return self._each(lambda key: tuple(jr.split(key, count)))(key)

    def _correction(self, model_args: tuple, model_kwargs: dict[str, Any]) -> Correction:
        return correction("DelayedAcceptance", self.model, model_args, model_kwargs, self.exact)

    def _log_ratio(self, z: Any, model_args: tuple, model_kwargs: dict[str, Any]) -> Array:
        """Log ratio of the exact to the sampled posterior. A NaN ratio becomes minus infinity, so that it is never accepted."""
        corrected = self._correction(model_args, model_kwargs)
        constrain = self.kernel.postprocess_fn(model_args, model_kwargs)

        def one(z: Any) -> Scalar:
            ratio = corrected.total(constrain(z))
            return jnp.where(jnp.isnan(ratio), -jnp.inf, ratio)

        return self._each(one)(z)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_sample_fn": None}


def _where(accept: Bool[Array, "*chains"], new: Array, old: Array) -> Array:
    """Select `new` where it is accepted, and `old` elsewhere. Both may have further axes behind those of the chains."""
    return jnp.where(accept.reshape(accept.shape + (1,) * (jnp.ndim(new) - accept.ndim)), new, old)
