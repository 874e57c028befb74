"""Every objective is least at the divergence: its mean gradient is zero there, and what it should be elsewhere."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from references import ExactGaussianFlow, cases, random_flow, to64, trace_of_jacobian, x64

import flowdensity as fd
from flowdensity.data.tables import Sample
from flowdensity.divergence.centers import PathCenters
from flowdensity.divergence.kernel import MeanJacobian, frame_size
from flowdensity.models.flows import zero_velocity

COUNT = 20_000
COVARIANCE = np.array([[2.0, 0.6], [0.6, 0.5]])
NO_CONTEXT = jnp.zeros(0)
OBJECTIVES = {
    "kernel": fd.objectives.LangevinStein(),
    "denoising": fd.objectives.LangevinStein(rho=1.0),
    "score": fd.objectives.ScoreStein(),
    "regression": fd.objectives.HutchinsonRegression(),
}


class LinearHead(eqx.Module):
    """div F + theta . (1, y0): exact where theta is zero."""

    model: eqx.Module
    theta: jax.Array
    scale: jax.Array

    def __call__(self, time, state, seen):
        return trace_of_jacobian(self.model, time, state, NO_CONTEXT) + self.theta @ jnp.stack([jnp.ones(()), state[0]])


def gaussian_setting():
    """The exact flow of a Gaussian, whose path the data follow and whose score is therefore the path's."""
    model = ExactGaussianFlow(np.zeros(2), COVARIANCE)
    states = jr.multivariate_normal(jr.key(0), jnp.zeros(2), jnp.asarray(COVARIANCE), (COUNT,))
    return model, Sample(states, jnp.zeros((COUNT, 0)))


def mean_and_error(values):
    values = np.asarray(values)
    return values.mean(0), values.std(0, ddof=1) / np.sqrt(len(values))


@pytest.mark.parametrize("objective", cases(OBJECTIVES, ["kernel"]))
def test_an_objective_is_least_at_the_divergence(objective):
    with x64():
        model, sample = gaussian_setting()
        kernels = objective.draw(jr.key(1), PathCenters(sample, model), 2 * COUNT)
        control = MeanJacobian(jnp.array([0.0, np.pi / 2.0]), jnp.zeros((2, 2, 2)))
        head = LinearHead(model, jnp.zeros(2), jnp.asarray(1.0))

        def loss(theta, kernel):
            return objective.loss(eqx.tree_at(lambda h: h.theta, head, theta), model, control, kernel)

        slopes = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0)))
        if isinstance(objective, fd.objectives.ScoreStein):
            # At the data's end the score is not determined, and close to it its variance has no bound.
            kernels = jax.tree.map(lambda leaf: leaf[np.asarray(kernels.time) < 1.4], kernels)
        mean, error = mean_and_error(slopes(jnp.zeros(2), kernels))
        assert np.all(np.abs(mean) < 4.5 * error)
        mean, error = mean_and_error(slopes(jnp.array([0.5, 0.0]), kernels))
        assert abs(mean[0] - 2.0 * 0.5) < 4.5 * error[0] + 1e-9
        assert error[0] < 0.1


def test_the_score_objective_is_for_models_that_have_one():
    class Elsewhere(fd.models.AbstractProbabilityFlow):
        network: None = None
        scaling: None = None
        context_scaling: None = None
        reach: None = None

        def network_velocity(self, time, state, context):
            return state, None

        def reference_velocity(self, time, state, context):
            return zero_velocity(state)

        def velocity_scale(self, time):
            return 1.0

        def times(self, steps):
            return jnp.linspace(0.0, 1.0, steps + 1)

    with pytest.raises(
        TypeError, match=r"ScoreStein expected a model that follows a Gaussian path.*got Elsewhere.*Fix: "
    ):
        fd.objectives.ScoreStein().loss(None, Elsewhere(), None, None)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: fd.objectives.LangevinStein(rho=0.0),
            r"LangevinStein expected `rho` as a number above 0 and at most 1; got 0.0.*Fix: ",
        ),
        (
            lambda: fd.objectives.LangevinStein(tails=1.5),
            r"LangevinStein expected `tails` as a number at least 0 and at most 1; got 1.5.*Fix: ",
        ),
        (lambda: fd.objectives.ScoreStein(source="rows"), r"ScoreStein expected `source`.*got 'rows'.*Fix: "),
        (
            lambda: fd.objectives.HutchinsonRegression(tails=-0.1),
            r"HutchinsonRegression expected `tails` as a number at least 0.*Fix: ",
        ),
    ],
)
def test_unusable_objectives_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.slow
def test_frames_are_whole_in_few_dimensions():
    assert [frame_size(dim) for dim in (1, 2, 8, 9)] == [1, 2, 8, 1]
    for dim, expected in ((8, 8), (9, 1)):
        sample = Sample(jnp.zeros((3, dim)), jnp.zeros((3, 0)))
        centers = PathCenters(sample, random_flow(jr.key(2), dim))
        assert fd.objectives.LangevinStein().draw(jr.key(3), centers, 100).noise.shape == (
            -(-100 // expected),
            expected,
            dim,
        )
        assert fd.objectives.ScoreStein().draw(jr.key(3), centers, 100).noise.shape == (100, 1, dim)


def test_the_unit_of_the_velocity_does_not_matter():
    """A head is counted in the model's unit and multiplied back: the divergence is that of the velocity."""

    class Doubled(fd.models.AbstractProbabilityFlow):
        inner: fd.models.GaussianFlow
        network: None = None
        scaling: None = None
        context_scaling: None = None
        reach: None = None

        def network_velocity(self, time, state, context):
            return self.inner.network_velocity(time, state, context)

        def reference_velocity(self, time, state, context):
            return zero_velocity(state)

        def velocity_scale(self, time):
            return 2.0

        def times(self, steps):
            return self.inner.times(steps)

    class Half(eqx.Module):
        inner: fd.models.GaussianFlow

        def __call__(self, time, state, seen):
            return 0.5 * trace_of_jacobian(self.inner, time, state, NO_CONTEXT)

    with x64():
        inner = to64(random_flow(jr.key(4), 2))
        arguments = jnp.asarray(0.7), jnp.array([0.3, -0.2]), NO_CONTEXT
        velocity, divergence = fd.SteinDivergence(Half(inner))(Doubled(inner), *arguments)
        np.testing.assert_allclose(velocity, inner.velocity(*arguments), rtol=1e-12)
        np.testing.assert_allclose(divergence, trace_of_jacobian(inner, *arguments), rtol=1e-12)
