"""What numpyro asks of every distribution, asked of every kind of learned density."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints
from numpyro.distributions.batch_util import vmap_over
from references import (
    CONTEXTS,
    EPS32,
    GAUSSIAN_COVARIANCE,
    GAUSSIAN_MEAN,
    ExactGaussianFlow,
    amortized,
    conditional_gaussian_flow,
    conditional_gaussian_log_prob,
    gaussian_flow,
)
from scipy.stats import lognorm, multivariate_normal

import flowdensity as fd

# Exact flows on a coarse grid: what is tested here is shapes and transformations, not accuracy.
SOLVER = fd.FixedStep(8)
MATRIX_COVARIANCE = 0.5 * np.eye(6) + 0.5


def matrix_flow() -> ExactGaussianFlow:
    return ExactGaussianFlow(np.arange(6.0), MATRIX_COVARIANCE, event_shape=(2, 3))


def log_normal_flow() -> ExactGaussianFlow:
    return ExactGaussianFlow(np.array([0.3]), np.array([[0.5]]), support=constraints.positive, event_shape=())


def one_by_one(density: fd.AmortizedDensity, x: np.ndarray, contexts: np.ndarray) -> np.ndarray:
    """The network's log density, state by state; the Gaussian flow's coordinates are centered and not whitened."""
    batch = np.broadcast_shapes(x.shape[:-1], contexts.shape[:-1])
    x, contexts = np.broadcast_to(x, (*batch, 2)), np.broadcast_to(contexts, (*batch, contexts.shape[-1]))
    return np.reshape(
        [
            density.state_log_prob(jnp.asarray(x[i] - GAUSSIAN_MEAN, jnp.float32), jnp.asarray(contexts[i]))
            for i in np.ndindex(batch)
        ],
        batch,
    )


# name: (constructor, batch shape, event shape, log density in closed form)
CASES = {
    "vector": (
        lambda: fd.FlowDensity(gaussian_flow(), solver=SOLVER),
        (),
        (2,),
        multivariate_normal(GAUSSIAN_MEAN, GAUSSIAN_COVARIANCE).logpdf,
    ),
    "positive scalar": (
        lambda: fd.FlowDensity(log_normal_flow(), solver=SOLVER),
        (),
        (),
        lognorm(np.sqrt(0.5), scale=np.exp(0.3)).logpdf,
    ),
    "matrix": (
        lambda: fd.FlowDensity(matrix_flow(), solver=SOLVER),
        (),
        (2, 3),
        lambda x: multivariate_normal(np.arange(6.0), MATRIX_COVARIANCE).logpdf(x.reshape(*x.shape[:-2], 6)),
    ),
    "one context": (
        lambda: fd.FlowDensity(conditional_gaussian_flow(), CONTEXTS[0], solver=SOLVER),
        (),
        (2,),
        lambda x: conditional_gaussian_log_prob(x, CONTEXTS[0]),
    ),
    "contexts": (
        lambda: fd.FlowDensity(conditional_gaussian_flow(), CONTEXTS, solver=SOLVER),
        (4,),
        (2,),
        lambda x: conditional_gaussian_log_prob(x, CONTEXTS),
    ),
    "a table of contexts": (
        lambda: fd.FlowDensity(conditional_gaussian_flow(), CONTEXTS.reshape(2, 2, 3), solver=SOLVER),
        (2, 2),
        (2,),
        lambda x: conditional_gaussian_log_prob(x, CONTEXTS.reshape(2, 2, 3)),
    ),
    "amortized": (
        lambda: amortized(fd.FlowDensity(gaussian_flow(), solver=SOLVER)),
        (),
        (2,),
        lambda x: one_by_one(build("amortized"), x, np.zeros(0)),
    ),
    "amortized, contexts": (
        lambda: amortized(fd.FlowDensity(conditional_gaussian_flow(), CONTEXTS, solver=SOLVER)),
        (4,),
        (2,),
        lambda x: one_by_one(build("amortized, contexts"), x, CONTEXTS),
    ),
}
every = pytest.mark.parametrize("name", CASES)
some = pytest.mark.parametrize("name", ["positive scalar", "contexts", "amortized, contexts"])
flows = pytest.mark.parametrize("name", ["positive scalar", "contexts"])


@functools.lru_cache
def build(name: str) -> Any:
    return CASES[name][0]()


def close(actual, expected):
    """Eight third-order steps on these covariances are within 0.01 nats, and a little more far out."""
    np.testing.assert_allclose(actual, expected, rtol=0.01, atol=0.01)


@every
def test_shapes_and_values(name):
    sample_shape = (3, 2)
    _, batch_shape, event_shape, log_density = CASES[name]
    density = build(name)
    assert density.batch_shape == batch_shape
    assert density.event_shape == event_shape
    assert density.event_dim == len(event_shape)
    assert density.support.event_dim == len(event_shape)
    draws = density.sample(jr.key(0), sample_shape)
    assert draws.shape == sample_shape + batch_shape + event_shape
    assert density.shape(sample_shape) == draws.shape
    value = density.log_prob(draws)
    assert value.shape == sample_shape + batch_shape
    close(value, log_density(np.asarray(draws, np.float64)))
    inside = density.support(draws)
    assert inside.shape == sample_shape + batch_shape
    assert jnp.all(inside)
    assert jnp.all(density.support(density.support.feasible_like(draws)))


@some
def test_events_broadcast_against_contexts(name):
    _, batch_shape, event_shape, log_density = CASES[name]
    event = np.asarray(build(name).sample(jr.key(1)))[(0,) * len(batch_shape)]
    for leading in ((), (7,) + (1,) * len(batch_shape)):
        value = build(name).log_prob(np.broadcast_to(event, leading + event_shape))
        assert value.shape == np.broadcast_shapes(leading, batch_shape)
        close(value, np.broadcast_to(log_density(np.float64(event)), value.shape))


@every
def test_round_trip_through_the_pytree(name):
    density = build(name)
    leaves, structure = jax.tree.flatten(density)
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    hash(structure)
    again = jax.tree.unflatten(structure, leaves)
    assert jax.tree.structure(again) == structure
    for attribute in ("batch_shape", "event_shape", "has_rsample"):
        assert getattr(again, attribute) == getattr(density, attribute)
    draws = density.sample(jr.key(2))
    np.testing.assert_array_equal(again.sample(jr.key(2)), draws)
    np.testing.assert_array_equal(again.log_prob(draws), density.log_prob(draws))
    assert again.support(draws).shape == density.batch_shape


@some
def test_built_inside_jit(name):
    draws = build(name).sample(jr.key(2))
    inside = jax.jit(lambda x: CASES[name][0]().log_prob(x))(draws)
    np.testing.assert_allclose(inside, build(name).log_prob(draws), rtol=1e-5, atol=1e-5)


@every
def test_passed_to_and_returned_from_transformations(name):
    density = build(name)
    draws = density.sample(jr.key(2))
    expected = density.log_prob(draws)

    returned = jax.jit(lambda d: d)(density)
    assert jax.tree.structure(returned) == jax.tree.structure(density)
    np.testing.assert_allclose(jax.jit(lambda d, x: d.log_prob(x))(returned, draws), expected, rtol=1e-5, atol=1e-5)

    mapped = jax.lax.map(lambda _: density, jnp.ones(3))
    assert jax.tree.structure(mapped) == jax.tree.structure(density)
    scanned = jax.lax.scan(lambda carry, _: (carry, carry), density, jnp.ones(3))
    assert jax.tree.structure(scanned[0]) == jax.tree.structure(density)
    assert jax.tree.structure(scanned[1]) == jax.tree.structure(density)
    for stacked in (mapped, scanned[1]):
        values = jax.vmap(lambda d: d.log_prob(draws))(stacked)
        np.testing.assert_allclose(values, jnp.stack([expected] * 3), rtol=1e-5, atol=1e-5)


def test_vmap_over_instances():
    density = fd.FlowDensity(conditional_gaussian_flow(), solver=SOLVER)
    batched = density.given(CONTEXTS)
    events = batched.sample(jr.key(3))
    expected = batched.log_prob(events)
    stacked = jax.vmap(density.given)(jnp.asarray(CONTEXTS))
    values = {
        "a density in each iteration": jax.vmap(lambda c, x: density.given(c).log_prob(x))(CONTEXTS, events),
        "densities from vmap": jax.vmap(lambda d, x: d.log_prob(x))(stacked, events),
        "numpyro's vmap_over": jax.vmap(lambda d, x: d.log_prob(x), in_axes=(vmap_over(batched, context=0), 0))(
            batched, events
        ),
    }
    for how, value in values.items():
        np.testing.assert_allclose(value, expected, rtol=1e-5, err_msg=how)


@every
def test_expand(name):
    density = build(name)
    shape = (3, *density.batch_shape)
    for wide in (density.expand(shape), dist.ExpandedDistribution(density, shape)):
        assert wide.batch_shape == shape
        draws = wide.sample(jr.key(4), (2,))
        assert draws.shape == (2, *shape, *density.event_shape)
        flat = np.asarray(draws).reshape(2, 3, -1)
        assert not np.any(flat[:, 0] == flat[:, 1])  # independent copies
        expected = wide.log_prob(draws)
        np.testing.assert_allclose(expected, density.log_prob(draws), rtol=1e-5, atol=1e-5)
        returned = jax.jit(lambda d: d)(wide)
        assert jax.tree.structure(returned) == jax.tree.structure(wide)
        np.testing.assert_allclose(returned.log_prob(draws), expected, rtol=1e-5, atol=1e-5)


@some
def test_to_event(name):
    density = build(name)
    wide = density.expand((3, *density.batch_shape))
    for count in range(len(wide.batch_shape) + 1):
        for joint in (wide.to_event(count), dist.Independent(wide, count) if count else wide):
            split = len(wide.batch_shape) - count
            assert joint.batch_shape == wide.batch_shape[:split]
            assert joint.event_shape == wide.batch_shape[split:] + density.event_shape
            draws = joint.sample(jr.key(5))
            expected = np.asarray(density.log_prob(draws), np.float64).sum(tuple(range(split, len(wide.batch_shape))))
            np.testing.assert_allclose(joint.log_prob(draws), expected, rtol=1e-5, atol=1e-4)
            assert joint.support(draws).shape == joint.batch_shape


@flows
@pytest.mark.parametrize("wrap", ["expand", "to_event", "both"])
def test_wrapped_densities_know_their_intermediates(name, wrap):
    density = build(name).expand((3, *CASES[name][1]))
    if wrap == "to_event":
        density = build(name).to_event(len(CASES[name][1]))
    elif wrap == "both":
        density = density.to_event(1)
    draws, intermediates = density.sample_with_intermediates(jr.key(6), (2,))
    assert draws.shape == (2, *density.batch_shape, *density.event_shape)
    close(density.log_prob(draws, intermediates), density.log_prob(draws))


@some
def test_masked_rows_do_not_count(name):
    density = build(name).expand((3, *CASES[name][1]))
    draws = density.sample(jr.key(7))
    keep = np.array([True, False, True]).reshape(3, *[1] * len(CASES[name][1]))
    broken = draws.at[1].set(jnp.nan)
    masked = density.mask(np.broadcast_to(keep, density.batch_shape))
    value, slope = jax.value_and_grad(lambda x: masked.log_prob(x).sum())(broken)
    expected = np.asarray(density.log_prob(draws))[[0, 2]].sum()
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-4)
    assert jnp.all(jnp.isfinite(slope))
    np.testing.assert_array_equal(slope[1], np.zeros_like(slope[1]))
    assert jnp.all(slope[0] != 0.0)


@some
def test_gradients_reach_through_a_sample(name):
    """`has_rsample`: a draw is a differentiable function of the density's own arrays."""
    density = build(name)
    assert density.has_rsample

    def first(density):
        return density.sample(jr.key(8)).sum()

    slope = jax.grad(first, allow_int=True)(density)
    leaves = [leaf for leaf in jax.tree.leaves(slope) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in leaves)
    assert sum(float(jnp.sum(jnp.abs(leaf))) for leaf in leaves) > 0.0


@some
def test_batch_mates_do_not_matter(name):
    density = build(name)
    draws = density.sample(jr.key(9), (6,))
    together = density.log_prob(draws)
    for i in range(6):
        alone = density.log_prob(draws[i])
        np.testing.assert_allclose(alone, together[i], rtol=1e-5, atol=1e-5)


@some
def test_the_same_call_gives_the_same_number(name):
    density = build(name)
    np.testing.assert_array_equal(density.sample(jr.key(10), (4,)), density.sample(jr.key(10), (4,)))
    assert np.any(density.sample(jr.key(10)) != density.sample(jr.key(11)))
    draws = density.sample(jr.key(10), (4,))
    np.testing.assert_array_equal(density.log_prob(draws), density.log_prob(draws))


@flows
def test_base_and_event_are_carried_to_each_other(name):
    density = build(name)
    assert density.base.batch_shape == density.batch_shape
    noise = density.base.sample(jr.key(12), (3,))
    events = density.from_base(noise)
    assert events.shape == (3, *density.batch_shape, *density.event_shape)
    np.testing.assert_array_equal(events, density.sample(jr.key(12), (3,)))
    # Eight steps each way: the third-order errors of the two do not cancel exactly.
    np.testing.assert_allclose(density.to_base(events), noise, atol=0.01)


@flows
def test_a_variant_has_the_same_structure(name):
    """Else it cannot stand in for the other in a `scan`, a `cond` or a cache of compiled functions."""
    density = build(name)
    again = density.with_divergence(fd.ExactDivergence()).with_solver(SOLVER)
    assert jax.tree.structure(again) == jax.tree.structure(density)
    assert again.batch_shape == density.batch_shape
    draws = density.sample(jr.key(13))
    np.testing.assert_allclose(again.log_prob(draws), density.log_prob(draws), rtol=8.0 * EPS32)
