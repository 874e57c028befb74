"""What the tests compare with: closed forms, float64 finite differences, and models whose ODE is known exactly."""

import contextlib
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from numpyro.distributions import constraints
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

import flowdensity as fd
from flowdensity.data.scaling import Scaling, fit_scaling, standardize
from flowdensity.data.sites import Sites
from flowdensity.data.supports import joint
from flowdensity.models.flows import zero_velocity

EPS32 = float(np.finfo(np.float32).eps)


def cases(named: Mapping[str, Any], quick: Collection[str]) -> list:
    """Parameters of a test by name, tuples for several arguments; all but the quick ones are slow."""
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)), id=name, marks=[pytest.mark.slow] * (name not in quick)
        )
        for name, case in named.items()
    ]


def x64() -> contextlib.AbstractContextManager:
    """Double precision inside a `with` block; modules made outside stay in single precision."""
    return jax.enable_x64(True)


def to64(tree: Any) -> Any:
    """The same pytree with its floating-point arrays in double precision; call it inside `x64()`."""
    return jax.tree.map(
        lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64) if eqx.is_inexact_array(leaf) else leaf,
        tree,
    )


def central_difference(function: Callable, at: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """Gradient of a scalar function of an array, each coordinate by a central difference of error O(step^2)."""
    at = np.asarray(at, np.float64)
    out = np.zeros(at.shape)
    for index in np.ndindex(at.shape):
        shift = np.zeros(at.shape)
        shift[index] = step
        out[index] = (float(function(at + shift)) - float(function(at - shift))) / (2.0 * step)
    return out


def assert_whitens(
    scaling: Scaling, events: np.ndarray, white: np.ndarray, scale: Callable[[Any], np.ndarray] = np.asarray
) -> None:
    """That events whiten to `white` and back, on a scale of theirs, with the log-determinant of the map; inside `x64()`."""
    states, log_dets = jax.vmap(scaling.whiten)(jnp.asarray(events))
    np.testing.assert_allclose(states, white, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(scale(jax.vmap(scaling.unwhiten)(states)), scale(events), rtol=1e-9)
    for event, log_det in zip(events[:5], log_dets[:5], strict=True):
        jacobian = jax.jacfwd(lambda x: scaling.whiten(x)[0])(jnp.asarray(event))
        np.testing.assert_allclose(log_det, np.linalg.slogdet(jacobian)[1], rtol=1e-9)


def patch_everywhere(monkeypatch: pytest.MonkeyPatch, name: str, value: Any) -> None:
    """Replace a name in every module of the package that has it, wherever it was imported to."""
    homes = [m for key, m in list(sys.modules.items()) if key.startswith("flowdensity.") and hasattr(m, name)]
    assert homes, name
    for module in homes:
        monkeypatch.setattr(module, name, value)


class Mixture:
    """A mixture of Gaussians in numpy."""

    def __init__(self, weights: np.ndarray, means: np.ndarray, covariances: np.ndarray):
        self.weights, self.means, self.covariances = (np.asarray(a, float) for a in (weights, means, covariances))

    def sample(self, rng: np.random.Generator, rows: int) -> np.ndarray:
        which = rng.choice(len(self.weights), rows, p=self.weights)
        factors = np.linalg.cholesky(self.covariances)
        noise = rng.normal(size=(rows, self.means.shape[1]))
        return self.means[which] + np.einsum("nij,nj->ni", factors[which], noise)

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        terms = [
            np.log(w) + multivariate_normal(m, c).logpdf(x)
            for w, m, c in zip(self.weights, self.means, self.covariances, strict=True)
        ]
        return logsumexp(terms, axis=0)


MIXTURE = Mixture(
    weights=[0.4, 0.35, 0.25],
    means=[[-1.0, 0.0], [1.0, 1.0], [0.5, -1.5]],
    covariances=[[[0.3, 0.1], [0.1, 0.2]], [[0.2, -0.1], [-0.1, 0.3]], [[0.5, 0.0], [0.0, 0.15]]],
)


class ExactGaussianFlow(fd.models.AbstractGaussianFlow):
    r"""The exact probability flow of $u \sim N(\mu + A c, \Sigma)$, in centered but unwhitened coordinates.

    With $S_\phi = \sin^2\phi\,\Sigma + \cos^2\phi\,I$ and $m = A c$,
    $F = \cos\phi\,m + \cos\phi\sin\phi\,(\Sigma - I)\,S_\phi^{-1}(y - \sin\phi\,m)$, which carries $y_0$ to
    $\sin\phi\,m + S_\phi^{1/2} y_0$. The event is $x = b(u)$ with $b$ numpyro's bijection to the support.
    """

    network: None
    scaling: Scaling
    context_scaling: Scaling
    reach: jax.Array
    eigenvalues: jax.Array
    basis: jax.Array
    slope: jax.Array
    path: fd.paths.AbstractPath

    def __init__(
        self,
        mean: np.ndarray,
        covariance: np.ndarray,
        slope: np.ndarray | None = None,
        *,
        support: constraints.Constraint = constraints.real,
        event_shape: tuple[int, ...] | None = None,
        path: fd.paths.AbstractPath | None = None,
    ):
        mean, covariance = np.asarray(mean, float), np.asarray(covariance, float)
        dim = len(mean)
        slope = np.zeros((dim, 0)) if slope is None else np.asarray(slope, float)
        contexts = slope.shape[1]
        shape = (dim,) if event_shape is None else event_shape
        self.scaling = Scaling(mean, np.ones(dim), support, shape)
        self.network = None
        self.reach = jnp.asarray(jnp.inf)
        self.context_scaling = Scaling(np.zeros(contexts), np.ones(contexts), constraints.real, (contexts,))
        eigenvalues, basis = np.linalg.eigh(covariance)
        self.eigenvalues = jnp.asarray(eigenvalues, float)
        self.basis = jnp.asarray(basis, float)
        self.slope = jnp.asarray(slope, float)
        self.path = fd.paths.CondOT() if path is None else path

    def network_velocity(self, time, state, context):
        sine, cosine = jnp.sin(time), jnp.cos(time)
        mean = self.slope @ context
        rates = cosine * sine * (self.eigenvalues - 1.0) / (sine**2 * self.eigenvalues + cosine**2)
        velocity = cosine * mean + self.basis @ (rates * (self.basis.T @ (state - sine * mean)))
        return velocity, None

    def reference_velocity(self, time, state, context):
        return zero_velocity(state)

    def velocity_scale(self, time):
        return 1.0

    def angle(self, t):
        return self.path.angle(t)

    def times(self, steps):
        return self.path.grid(steps)

    def exact_divergence(self, time):
        r"""$\cos\phi\sin\phi\,\mathrm{tr}[(\Sigma - I) S_\phi^{-1}]$."""
        eigenvalues = np.asarray(self.eigenvalues, np.float64)
        sine, cosine = np.sin(time), np.cos(time)
        return np.sum(cosine * sine * (eigenvalues - 1.0) / (sine**2 * eigenvalues + cosine**2))


GAUSSIAN_MEAN = np.array([1.0, -2.0])
GAUSSIAN_COVARIANCE = np.array([[2.0, 0.6], [0.6, 0.5]])
SLOPE = np.array([[0.8, -0.3, 0.0], [0.2, 0.5, -0.4]])
"""Of the conditional Gaussian: two coordinates, contexts of shape (3,)."""
CONTEXTS = np.array([[0.0, 0.0, 0.0], [1.0, -0.5, 0.3], [-2.0, 1.0, 0.0], [0.5, 0.5, -3.0]])
"""Four contexts."""


def gaussian_flow(**options: Any) -> ExactGaussianFlow:
    return ExactGaussianFlow(GAUSSIAN_MEAN, GAUSSIAN_COVARIANCE, **options)


def conditional_gaussian_flow() -> ExactGaussianFlow:
    return ExactGaussianFlow(GAUSSIAN_MEAN, GAUSSIAN_COVARIANCE, SLOPE)


def conditional_gaussian_log_prob(x: np.ndarray, context: np.ndarray) -> np.ndarray:
    """Closed form of the conditional Gaussian's log density, batch axes broadcast."""
    x, context = np.asarray(x, np.float64), np.asarray(context, np.float64)
    away = x - GAUSSIAN_MEAN - context @ SLOPE.T
    distance = np.einsum("...i,ij,...j->...", away, np.linalg.inv(GAUSSIAN_COVARIANCE), away)
    return -0.5 * distance - 0.5 * np.linalg.slogdet(2.0 * np.pi * GAUSSIAN_COVARIANCE)[1]


NAMED = Sites(("a", "tau", "v"), ((), (), (2,)))
"""Of the Gaussian of named values below: a real number, a positive one, and a positive vector."""
NAMED_CONTEXT = Sites(("s", "t"), ((2,), ()))
"""Of its contexts."""
NAMED_MEAN = np.array([0.5, -0.4, 0.2, 0.0])
NAMED_COVARIANCE = 0.2 * np.array(
    [[1.0, 0.5, 0.0, 0.2], [0.5, 1.5, 0.3, 0.0], [0.0, 0.3, 0.8, -0.2], [0.2, 0.0, -0.2, 1.0]]
)
NAMED_SLOPE = np.array([[0.8, -0.3, 0.0], [0.2, 0.5, -0.4], [0.0, 0.0, 0.3], [-0.2, 0.1, 0.0]])


def named_flow(*, conditional: bool = False) -> ExactGaussianFlow:
    """Named values of which `a` and the logarithms of `tau` and `v` are jointly Gaussian; given `s` and `t`, or as they are."""
    flow = ExactGaussianFlow(NAMED_MEAN, NAMED_COVARIANCE, NAMED_SLOPE if conditional else None)
    support = joint([constraints.real, constraints.positive, constraints.positive], NAMED.shapes)
    scaling = Scaling(NAMED_MEAN, np.ones(4), support, (4,), NAMED)
    contexts = Scaling(np.zeros(3), np.ones(3), constraints.real, (3,), NAMED_CONTEXT)
    flow = eqx.tree_at(lambda m: m.scaling, flow, scaling)
    return eqx.tree_at(lambda m: m.context_scaling, flow, contexts) if conditional else flow


def named_log_prob(event: np.ndarray, context: np.ndarray | None = None) -> np.ndarray:
    """Closed form of its log density, batch axes broadcast."""
    event = np.asarray(event, np.float64)
    logs = np.log(event[..., 1:])
    away = np.concatenate([event[..., :1], logs], axis=-1) - NAMED_MEAN
    away = away if context is None else away - np.asarray(context, np.float64) @ NAMED_SLOPE.T
    distance = np.einsum("...i,ij,...j->...", away, np.linalg.inv(NAMED_COVARIANCE), away)
    return -0.5 * distance - 0.5 * np.linalg.slogdet(2.0 * np.pi * NAMED_COVARIANCE)[1] - logs.sum(-1)


def random_flow(
    key: jax.Array,
    dim: int,
    context_dim: int = 0,
    *,
    width: int = 16,
    size: float = 1.0,
    reach: float = 4.0,
) -> fd.models.GaussianFlow:
    """A Flow whose last layer and experts are not zero, on unwhitened coordinates: nothing about it is special."""
    net_key, last_key, expert_key = jr.split(key, 3)
    network = fd.networks.ResidualMLP(net_key, dim, context_dim, width=width, depth=1, frequencies=3)
    last = eqx.nn.Linear(width, dim, key=last_key)
    last = jax.tree.map(lambda leaf: size * 4.0 * leaf, last)
    experts = size * 0.5 * jr.normal(expert_key, network.experts.shape)
    network = eqx.tree_at(lambda n: (n.outward, n.experts), network, (last, experts))
    scaling = Scaling(np.zeros(dim), np.ones(dim), constraints.real, (dim,))
    context_scaling = Scaling(np.zeros(context_dim), np.ones(context_dim), constraints.real, (context_dim,))
    return fd.models.GaussianFlow(network, fd.paths.CondOT(), scaling, context_scaling, jnp.asarray(reach, float))


def untrained_flow(
    key: jax.Array,
    events: np.ndarray,
    contexts: np.ndarray | None = None,
    support: constraints.Constraint = constraints.real,
) -> fd.models.GaussianFlow:
    """A Flow as training starts from: whitened data and a zero-initialized network."""
    scaling, white = fit_scaling(events, support)
    contexts = np.zeros((len(events), 0)) if contexts is None else contexts
    context_scaling, _ = standardize(contexts)
    network = fd.networks.ResidualMLP(key, scaling.dim, context_scaling.dim, width=16)
    reach = 1.5 * np.linalg.norm(white, axis=1).max()
    return fd.models.GaussianFlow(network, fd.paths.CondOT(), scaling, context_scaling, jnp.asarray(reach, float))


def trace_of_jacobian(model: fd.models.AbstractProbabilityFlow, time: Any, state: Any, context: Any) -> jax.Array:
    return jnp.trace(jax.jacfwd(lambda y: model.velocity(time, y, context))(state))


def paired(better: np.ndarray, worse: np.ndarray) -> tuple[float, float]:
    """Mean of the gap between two scores of the same rows, and its standard error."""
    gap = np.asarray(better, np.float64) - np.asarray(worse, np.float64)
    return gap.mean(), gap.std(ddof=1) / np.sqrt(len(gap))


def random_log_density(dim: int, context_dim: int = 0) -> fd.networks.LogDensityNetwork:
    """A network with all that starts at zero drawn at random."""
    network = fd.networks.LogDensityNetwork(
        jr.key(0), dim, context_dim, reach=jnp.asarray(5.0), scale=jnp.asarray(1.0), width=16, experts=8
    )
    parts = [network.network.outward.weight, network.experts.weights]
    drawn = [jr.normal(jr.key(1 + i), part.shape) for i, part in enumerate(parts)]
    return eqx.tree_at(lambda n: [n.network.outward.weight, n.experts.weights], network, drawn)


def amortized(flow: fd.FlowDensity) -> fd.AmortizedDensity:
    """With a network that no flow was distilled into: a function like any other."""
    model = flow.model
    return fd.AmortizedDensity(random_log_density(model.dim, model.context_scaling.dim), flow)
