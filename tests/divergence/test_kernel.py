r"""The Langevin-Stein identity, in float64, for any field, any head, any width and any centers.

Every expectation is a mean over independent frames of kernel draws, so its standard error is the standard deviation of
their means over the root of their number. A case makes 16 comparisons and there are nine cases: with 5 standard errors the
chance that a right implementation fails one of them is below 1e-4.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from references import ExactGaussianFlow, random_flow, to64, trace_of_jacobian, x64
from scipy.stats import chi2, kstest, norm

import flowdensity as fd
from flowdensity.data.scaling import Scaling
from flowdensity.divergence.kernel import Kernel, MeanJacobian, draw_frame, mean_jacobian, stein_terms
from flowdensity.divergence.objectives import LangevinStein
from flowdensity.divergence.stein import DivergenceHead
from flowdensity.models.flows import zero_velocity

DIM, CONTEXT_DIM, HIDDEN = 2, 1, 16
FRAMES = 100_000


def random_head(seed: int = 0) -> DivergenceHead:
    unit = jnp.ones(())
    head = DivergenceHead(
        jr.key(seed),
        DIM,
        (HIDDEN,),
        span=jnp.array([0.0, 0.5 * jnp.pi]),
        reach=4.0 * unit,
        scale=unit,
        bound=6.0 * unit,
        width=8,
        frequencies=2,
    )
    last = jax.tree.map(lambda leaf: 4.0 * leaf, eqx.nn.Linear(8, "scalar", key=jr.key(seed + 1)))
    return eqx.tree_at(lambda h: (h.network.outward, h.offset), head, (last, jnp.array([0.5, -0.2, 0.1, 0.0])))


def model() -> eqx.Module:
    return random_flow(jr.key(7), DIM, CONTEXT_DIM, width=HIDDEN)


def no_control() -> MeanJacobian:
    return MeanJacobian(jnp.array([0.0, np.pi / 2.0]), jnp.zeros((2, DIM, DIM)))


def random_control() -> MeanJacobian:
    """Symmetric matrices that have nothing to do with the field: the identity holds with any."""
    matrices = jr.normal(jr.key(8), (3, DIM, DIM))
    return MeanJacobian(jnp.array([0.0, 0.5, np.pi / 2.0]), 0.5 * (matrices + matrices.swapaxes(1, 2)))


def draw_kernels(key: jax.Array, width: float, centers: str, count: int = FRAMES) -> Kernel:
    """`near`: within the data. `inflated`: up to four times as far. `far`: five times the squash's reach. Whole frames."""
    times, places, stretch, noise, context = jr.split(key, 5)
    center = jr.normal(places, (count, DIM))
    if centers == "inflated":
        center = center * jnp.exp(jr.uniform(stretch, (count, 1), maxval=jnp.log(4.0)))
    if centers == "far":
        center = 20.0 * center / jnp.linalg.norm(center, axis=1, keepdims=True)
    return Kernel(
        time=jr.uniform(times, (count,), maxval=jnp.pi / 2.0),
        center=center,
        noise=jax.vmap(lambda k: draw_frame(k, DIM, DIM))(jr.split(noise, count)),
        width=jnp.full(count, width),
        context=jr.normal(context, (count, CONTEXT_DIM)),
    )


def mean_and_error(values: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Of one value, or one vector, a frame."""
    values = np.asarray(values)
    assert values.dtype == np.float64
    return values.mean(0), values.std(0, ddof=1) / np.sqrt(len(values))


def truths(field, kernels: Kernel, points: jax.Array) -> jax.Array:
    """The divergence at every draw of every frame."""
    frame = jax.vmap(lambda t, y, c: trace_of_jacobian(field, t, y, c), in_axes=(None, 0, None))
    return jax.vmap(frame)(kernels.time, points, kernels.context)


@functools.lru_cache
def evaluated():
    """Terms of the identity and the true divergence at each point, as one compiled function of the draws."""
    field, head, control = to64((model(), random_head(), random_control()))

    @jax.jit
    def run(kernels):
        terms = jax.vmap(lambda k: stein_terms(head, field, control, k))(kernels)
        return terms, truths(field, kernels, terms.point)

    return run


@pytest.mark.slow
@pytest.mark.parametrize("centers", ["near", "inflated", "far"])
@pytest.mark.parametrize("width", [0.02, 0.3, 1.5])
def test_the_identity_holds_for_any_head_width_and_centers(width, centers):
    with x64():
        kernels = draw_kernels(jr.key(11), width, centers)
        terms, truth = evaluated()(kernels)
        np.testing.assert_allclose(terms.point, kernels.center[:, None] + width * kernels.noise, atol=1e-12)
        # E[T f + r . grad f - f div F] = 0
        columns = {"1": terms.target - truth, "g": terms.value * (terms.target - truth) + terms.slope}
        for i in range(DIM):
            columns[f"y[{i}]"] = terms.point[..., i] * (terms.target - truth) + terms.displacement[..., i]
        # A test function with curvature, its gradient written out: sin(y0 + 2 y1).
        phase = terms.point[..., 0] + 2.0 * terms.point[..., 1]
        gradient = jnp.cos(phase)[..., None] * jnp.array([1.0, 2.0])
        columns["sin"] = jnp.sin(phase) * (terms.target - truth) + jnp.sum(terms.displacement * gradient, -1)
        columns = {name: values.mean(1) for name, values in columns.items()}
        # And within a slice of the angles, where nothing can cancel between them.
        columns["early"] = jnp.where(kernels.time < 0.3, columns["1"], 0.0)
        for name, values in columns.items():
            mean, error = mean_and_error(values)
            assert abs(mean) < 5.0 * error, name
            assert error > 0.0
        if centers == "near":
            # The test has power: a wrong sign or a missing term would be of the size of the divergence.
            typical = float(jnp.sqrt(jnp.mean(truth**2)))
            for name in ("1", "g", "sin"):
                assert mean_and_error(columns[name])[1] < 0.05 * typical, name


@pytest.mark.slow
def test_terms_are_what_they_are_called():
    with x64():
        field, head, control = to64((model(), random_head(), random_control()))
        kernels = draw_kernels(jr.key(12), 0.3, "near", count=20)

        @jax.jit
        @jax.vmap
        def by_hand(kernel):
            def value(y):
                return head(kernel.time, y, field.network_velocity(kernel.time, y, kernel.context)[1])

            def velocity(y):
                return field.velocity(kernel.time, y, kernel.context)

            points = kernel.center + 0.3 * kernel.noise
            # The gradient of g includes the path through the features.
            gradients = jax.vmap(jax.grad(value))(points)
            return (
                jax.vmap(value)(points),
                value(kernel.center),
                gradients,
                velocity(kernel.center) - jax.vmap(velocity)(points),
            )

        terms = jax.jit(jax.vmap(lambda k: stein_terms(head, field, control, k)))(kernels)
        value, rate, gradient, difference = (np.asarray(part) for part in by_hand(kernels))
        np.testing.assert_allclose(terms.value, value, rtol=1e-10)
        slope = np.sum(terms.displacement * gradient, -1)
        np.testing.assert_allclose(terms.slope, slope, rtol=1e-9, atol=1e-12)

        # F(c) - F(y) + h B eta and the divergence put back, tr B = g(c), with B the mean Jacobian but for its trace.
        nodes, matrices = np.asarray(control.nodes), np.asarray(control.matrices)
        for i, j in np.ndindex(20, DIM):
            time, noise = float(kernels.time[i]), np.asarray(kernels.noise[i, j])
            matrix = np.array([[np.interp(time, nodes, matrices[:, k, m]) for m in range(DIM)] for k in range(DIM)])
            matrix += np.eye(DIM) * (rate[i] - np.trace(matrix)) / DIM
            expected = difference[i, j] + 0.3 * matrix @ noise
            np.testing.assert_allclose(terms.displacement[i, j], expected, rtol=1e-9, atol=1e-12)
            expected = -difference[i, j] @ noise / 0.3 - noise @ matrix @ noise + np.trace(matrix)
            np.testing.assert_allclose(terms.target[i, j], expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("directions", "dim"), [(1, 1), (1, 3), (2, 3), (4, 4)])
def test_a_frame_is_of_normal_vectors_at_right_angles(directions, dim):
    count = 20_000
    with x64():
        frames = np.asarray(jax.vmap(lambda k: draw_frame(k, directions, dim))(jr.split(jr.key(18), count)))
    assert frames.shape == (count, directions, dim)
    lengths = np.linalg.norm(frames, axis=2)
    products = np.einsum("nij,nkj->nik", frames, frames)
    np.testing.assert_allclose(products, lengths[:, :1, None] ** 2 * np.eye(directions), atol=1e-10)
    # Each vector by itself is standard normal: so is each coordinate, and the square of the length is chi-squared.
    for i in range(directions):
        assert kstest(lengths[:, i] ** 2, chi2(dim).cdf).pvalue > 1e-5
        for j in range(dim):
            assert kstest(frames[:, i, j], norm.cdf).pvalue > 1e-5


def test_a_whole_frame_takes_the_first_order_noise_out():
    """For a linear field and a head that has its divergence nothing is left; single directions leave the traceless part."""
    covariance = np.array([[2.0, 0.6], [0.6, 0.5]])
    with x64():
        field = ExactGaussianFlow(np.array([1.0, -2.0]), covariance, np.ones((DIM, CONTEXT_DIM)))

        def head(time, state, hidden):
            return trace_of_jacobian(field, time, state, jnp.zeros(CONTEXT_DIM))

        class Featured(ExactGaussianFlow):
            def network_velocity(self, time, state, context):
                return super().network_velocity(time, state, context)[0], state

        featured = Featured(np.array([1.0, -2.0]), covariance, np.ones((DIM, CONTEXT_DIM)))
        kernels = draw_kernels(jr.key(19), 0.3, "near", 2000)
        terms = jax.jit(jax.vmap(lambda k: stein_terms(head, featured, no_control(), k)))(kernels)
        errors = np.asarray(terms.target - terms.value)
    np.testing.assert_allclose(errors.mean(1), 0.0, atol=1e-10)
    assert errors.std() > 0.1


class LinearHead(eqx.Module):
    """div F + theta . (1, y0, sin(y0 + 2 y1)): linear in its parameters, and exact where they are zero."""

    model: eqx.Module
    context: jax.Array
    theta: jax.Array
    scale: jax.Array

    def __call__(self, time, state, hidden):
        basis = jnp.stack([jnp.ones(()), state[0], jnp.sin(state[0] + 2.0 * state[1])])
        return trace_of_jacobian(self.model, time, state, self.context) + self.theta @ basis


@pytest.mark.slow
@pytest.mark.parametrize("width", [0.1, 1.0])
def test_the_loss_is_least_at_the_divergence(width):
    """The gradient of the mean loss is zero at g = div F, and off it has the closed form 2 E[b b'] theta."""
    count = 20_000
    with x64():
        kernels = draw_kernels(jr.key(13), width, "inflated", count)
        context = jnp.array([0.4])
        kernels = kernels._replace(context=jnp.tile(context, (count, 1)))
        field, control = to64((model(), random_control()))
        head = LinearHead(field, context, jnp.zeros(3), jnp.asarray(2.0))

        def loss(theta, kernel):
            batch = jax.tree.map(lambda leaf: leaf[None], kernel)
            return LangevinStein().mean_loss(eqx.tree_at(lambda h: h.theta, head, theta), field, control, batch)

        slopes = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0)))
        mean, error = mean_and_error(slopes(jnp.zeros(3), kernels))
        assert np.all(np.abs(mean) < 4.5 * error)

        theta = jnp.array([0.3, -0.1, 0.2])
        mean, error = mean_and_error(slopes(theta, kernels))
        points = np.asarray(kernels.center[:, None] + width * kernels.noise).reshape(-1, DIM)
        basis = np.column_stack([np.ones(len(points)), points[:, 0], np.sin(points[:, 0] + 2.0 * points[:, 1])])
        expected = 2.0 * (basis.T @ basis / len(points)) @ np.asarray(theta) / 2.0**2  # in units of the head's scale
        assert np.all(np.abs(mean - expected) < 4.5 * error)
        assert np.any(np.abs(mean) > 10.0 * error)  # and it is not zero there


@pytest.mark.slow
def test_the_control_variates_lower_the_variance_and_add_no_bias():
    """None; the constant F(c); with it the trace at the center; with both the mean Jacobian."""
    width = 0.3
    # A field with a large mean Jacobian, which no single point has: a symmetric shear on top of the random one.
    shear = np.array([[1.5, 2.0], [2.0, -1.0]])
    with x64():
        inner = to64(model())

        class Sheared(fd.models.AbstractProbabilityFlow):
            network: None
            scaling: Scaling
            context_scaling: Scaling
            reach: jax.Array

            def network_velocity(self, time, state, context):
                velocity, hidden = inner.network_velocity(time, state, context)
                return velocity + jnp.sin(time) * shear @ state, hidden

            def reference_velocity(self, time, state, context):
                return zero_velocity(state)

            def velocity_scale(self, time):
                return 1.0

            def times(self, steps):
                return inner.times(steps)

        field = Sheared(None, inner.scaling, inner.context_scaling, inner.reach)

        class Zero(eqx.Module):
            def __call__(self, time, state, hidden):
                return jnp.zeros(())

        class Exact(eqx.Module):
            context: jax.Array

            def __call__(self, time, state, hidden):
                return trace_of_jacobian(field, time, state, self.context)

        kernels, others = (draw_kernels(jr.key(seed), width, "near", 50_000) for seed in (14, 16))
        control = jax.jit(lambda k: mean_jacobian(field, jnp.linspace(0.0, jnp.pi / 2.0, 9), k))(others)

        @jax.jit
        def run(kernels):
            def one(kernel):
                plain = stein_terms(Zero(), field, no_control(), kernel)
                traced = stein_terms(Exact(kernel.context), field, no_control(), kernel)
                full = stein_terms(Exact(kernel.context), field, control, kernel)
                velocities = jax.vmap(lambda y: field.velocity(kernel.time, y, kernel.context))(plain.point)
                raw = jnp.sum(velocities * kernel.noise, -1) / kernel.width
                return jnp.stack([raw, plain.target, traced.target, full.target], -1), plain.point

            targets, points = jax.vmap(one)(kernels)
            return targets - truths(field, kernels, points)[..., None]

        # One direction of each frame: a whole one would leave no first-order noise to take out.
        errors = run(kernels._replace(noise=kernels.noise[:, :1]))[:, 0]
        mean, error = mean_and_error(errors)
        assert np.all(np.abs(mean) < 4.5 * error)
        # Each step lowers the variance, by more than 4.5 standard errors of a paired difference of squares.
        squares = np.square(np.asarray(errors) - mean)
        for worse, better in zip(squares.T, squares.T[1:], strict=False):
            gap = worse - better
            assert gap.mean() > 4.5 * gap.std() / np.sqrt(len(gap))


def test_the_mean_jacobian_is_found_without_derivatives():
    """Of a linear field it is the matrix itself, between the nodes as well."""
    covariance = np.array([[2.0, 0.6], [0.6, 0.5]])
    with x64():
        field = ExactGaussianFlow(np.array([1.0, -2.0]), covariance, np.ones((DIM, CONTEXT_DIM)))
        nodes = np.linspace(0.0, np.pi / 2.0, 33)
        kernels = draw_kernels(jr.key(17), 0.3, "near")
        found = jax.jit(lambda k: mean_jacobian(field, jnp.asarray(nodes), k))(kernels)
        matrices = np.asarray(found.matrices)
        np.testing.assert_allclose(matrices, matrices.swapaxes(1, 2), atol=1e-12)
        eye = np.eye(DIM)
        exact = np.stack(
            [
                np.sin(a)
                * np.cos(a)
                * (covariance - eye)
                @ np.linalg.inv(np.sin(a) ** 2 * covariance + np.cos(a) ** 2 * eye)
                for a in nodes
            ]
        )
        # J eta eta' has entries of standard deviation sqrt(2) |J| at most, and its mean over a frame no larger ones; each
        # node is an average over a 32nd of the frames (the ends over half as many), and |J| is at most one here. The
        # average over a node's hat function is
        # within a tenth of the node's spacing times the slope of J of its value at the node: 0.01.
        tolerance = 4.5 * np.sqrt(2.0 * 64.0 / FRAMES) + 0.01
        np.testing.assert_allclose(matrices, exact, atol=tolerance)
        assert np.abs(exact).max() > 3.0 * tolerance
        for time in (0.0, 0.4, 1.2, np.pi / 2.0):
            here = np.stack([np.interp(time, nodes, matrices[:, i, j]) for i in range(2) for j in range(2)]).reshape(
                2, 2
            )
            np.testing.assert_allclose(found.trace(jnp.asarray(time)), np.trace(here), atol=1e-10)
            np.testing.assert_allclose(
                found.times(jnp.asarray(time), jnp.array([0.3, -2.0])), here @ [0.3, -2.0], atol=1e-10
            )


@pytest.mark.slow
def test_the_control_variate_is_not_trained():
    """Its rate is a constant of each draw: a head must not lower its loss by making the noise do the work."""
    with x64():
        field, head, control = to64((model(), random_head(), random_control()))
        kernel = jax.tree.map(lambda leaf: leaf[0], draw_kernels(jr.key(15), 0.3, "near", 1))

        def target(head):
            return jnp.sum(stein_terms(head, field, control, kernel).target)

        slope = eqx.filter_grad(target)(head)
        for leaf in jax.tree.leaves(slope):
            np.testing.assert_array_equal(leaf, np.zeros_like(leaf))
