"""The mixture of Gaussians that a flow starts at: its velocity, its divergence, its density, and how it fades."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from references import MIXTURE, gaussian_flow, random_flow, to64, trace_of_jacobian, x64

import flowdensity as fd
from flowdensity.data.whitened import whitened
from flowdensity.divergence.objectives import LangevinStein
from flowdensity.models.flows import with_reference
from flowdensity.references.mixture import GaussianMixture
from flowdensity.training.divergence import fit_divergence_head
from flowdensity.training.results import last

NO_CONTEXT = jnp.zeros(0)
POINTS = MIXTURE.sample(np.random.default_rng(0), 20)


def mixture() -> GaussianMixture:
    """Made anew, since its axes are at right angles to the precision that there is at the time."""
    return GaussianMixture(MIXTURE.weights, MIXTURE.means, MIXTURE.covariances)


def started(size: float, reach: float) -> fd.models.GaussianFlow:
    """A network of this size, zero for none, beside the mixture."""
    return with_reference(random_flow(jr.key(1), 2, size=size, reach=reach), mixture())


def diffusion(reach: float) -> fd.models.GaussianFlow:
    flow = random_flow(jr.key(1), 2, size=0.0, reach=reach)
    parts = flow.scaling, flow.context_scaling, flow.reach
    return fd.models.GaussianFlow(flow.network, fd.paths.VariancePreserving(), *parts, "noise", mixture())


@pytest.mark.slow
def test_without_a_network_it_is_the_mixture():
    with x64():
        flow = to64(started(0.0, 1e6))
        density = fd.FlowDensity(flow, divergence=fd.ExactDivergence(), solver=fd.FixedStep(200))
        np.testing.assert_allclose(density.log_prob(POINTS), MIXTURE.log_prob(POINTS), atol=1e-6)
        for angle in (0.2, 0.9, 1.5):
            sine, cosine = np.sin(angle), np.cos(angle)
            path = type(MIXTURE)(
                MIXTURE.weights, sine * MIXTURE.means, sine**2 * MIXTURE.covariances + cosine**2 * np.eye(2)
            )
            # The score of the path's law by central differences of its closed form.
            slopes = [
                (path.log_prob(POINTS + 1e-5 * axis) - path.log_prob(POINTS - 1e-5 * axis)) / 2e-5 for axis in np.eye(2)
            ]
            scores = jax.vmap(lambda y, angle=angle: flow.score(jnp.asarray(angle), y, NO_CONTEXT))(jnp.asarray(POINTS))
            np.testing.assert_allclose(scores, np.stack(slopes, axis=1), rtol=1e-6, atol=1e-6)


def test_a_diffusion_starts_there_too():
    """Between the end angles of its path, which is cut short if the noise is predicted."""
    with x64():
        model, flow = to64(diffusion(1e6)), to64(started(0.0, 1e6))
        for angle in (0.1, 0.8, 1.5):
            ours, theirs = (m.velocity(jnp.asarray(angle), jnp.asarray(POINTS[0]), NO_CONTEXT) for m in (model, flow))
            np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_one_component_is_the_flow_of_a_gaussian():
    gaussian = gaussian_flow()
    covariance = np.asarray(gaussian.basis * gaussian.eigenvalues @ gaussian.basis.T)
    start = GaussianMixture(np.ones(1), np.zeros((1, 2)), covariance[None])
    for angle, point in ((0.3, [0.5, -1.0]), (1.4, [2.0, 0.1])):
        angle, point = jnp.asarray(angle), jnp.asarray(point)
        velocity, divergence = start(angle, point)
        np.testing.assert_allclose(velocity, gaussian.velocity(angle, point, NO_CONTEXT), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(divergence, gaussian.exact_divergence(angle), rtol=1e-5)


def test_its_divergence_is_the_trace_of_its_jacobian():
    with x64():
        model = to64(started(0.0, 4.0))
        angles, scales = (
            grid.ravel() for grid in jnp.meshgrid(jnp.linspace(0.0, jnp.pi / 2, 5), jnp.array([0, 0.5, 3, 100]))
        )
        states = scales[:, None] * jnp.array([0.8, -1.1])
        divergences = jax.jit(jax.vmap(lambda angle, y: model.reference_velocity(angle, y, NO_CONTEXT)[1]))(
            angles, states
        )
        exact = jax.jit(jax.vmap(lambda angle, y: trace_of_jacobian(model, angle, y, NO_CONTEXT)))(angles, states)
        np.testing.assert_allclose(divergences, exact, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("weights", "means", "covariances", "got"),
    [
        (np.ones(2), np.zeros((3, 2)), np.tile(np.eye(2), (3, 1, 1)), r"\(2,\), \(3, 2\) and \(3, 2, 2\)"),
        (np.ones(1), np.zeros((1, 2)), np.diag([1.0, 0.0])[None], "a smallest variance of 0"),
        (np.array([1.0, 0.0]), np.zeros((2, 1)), np.ones((2, 1, 1)), "a smallest weight of 0"),
    ],
)
def test_what_makes_no_mixture_is_an_error(weights, means, covariances, got):
    with pytest.raises(ValueError, match=rf"^GaussianMixture expected .*got .*{got}.*Fix: "):
        GaussianMixture(weights, means, covariances)


def test_it_fades_far_from_the_data():
    model = started(0.0, 4.0)
    for scale in (1e3, 1e6):
        state = scale * jnp.array([0.6, -0.8])
        velocity, divergence = model.reference_velocity(jnp.asarray(1.2), state, NO_CONTEXT)
        # As |y|^-1 and |y|^-2, times what the mixture has at the reach.
        assert np.linalg.norm(velocity) <= 4.0 * 10.0 / scale
        assert np.abs(divergence) <= 16.0 * 10.0 / scale**2
        assert np.all(
            np.isfinite(jax.jacfwd(lambda y: model.reference_velocity(jnp.asarray(1.2), y, NO_CONTEXT))(state)[0])
        )


@pytest.mark.slow
def test_the_learned_divergence_is_that_of_the_network_alone():
    """A head of zero beside a network of zeros is exact; one that was distilled is close, and closer than none."""
    model = started(0.0, 6.0)
    table = whitened(
        "test", model.scaling, model.context_scaling, np.float32(MIXTURE.sample(np.random.default_rng(1), 2000)), None
    )
    training = fd.Training(steps=600, batch_size=256)
    none, report = last(
        fit_divergence_head(jr.key(0), model, table, training, LangevinStein(), progress=False, checkpoint=None)
    )
    assert "nothing to learn" in report.summary()
    exact = fd.FlowDensity(model, divergence=fd.ExactDivergence())
    np.testing.assert_allclose(exact.with_divergence(none).log_prob(POINTS), exact.log_prob(POINTS), atol=1e-4)
    model = started(0.1, 6.0)
    learned, _ = last(
        fit_divergence_head(jr.key(0), model, table, training, LangevinStein(), progress=False, checkpoint=None)
    )
    exact = fd.FlowDensity(model, divergence=fd.ExactDivergence())
    errors = [
        float(jnp.sqrt(jnp.mean(jnp.square(exact.with_divergence(each).log_prob(POINTS) - exact.log_prob(POINTS)))))
        for each in (learned, none)
    ]
    assert errors[0] < 0.1
    assert errors[0] < 0.3 * errors[1]
