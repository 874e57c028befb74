"""Diffusions as Gaussian paths: for Gaussian data everything is known, for every path and every kind of prediction."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from references import EPS32, ExactGaussianFlow, untrained_flow, x64
from scipy.stats import kstest, multivariate_normal, norm

import flowdensity as fd
from flowdensity import solving
from flowdensity.models.fields import identity_scaling
from flowdensity.models.flows import zero_velocity

MEAN = np.array([0.6, -1.1])
COVARIANCE = np.array([[1.4, 0.5], [0.5, 0.4]])
EYE = np.eye(2)
NO_CONTEXT = jnp.zeros(0)
PATHS = {
    "CondOT": fd.paths.CondOT(),
    "Trigonometric": fd.paths.Trigonometric(),
    "VariancePreserving": fd.paths.VariancePreserving(),
    "VarianceExploding": fd.paths.VarianceExploding(),
}
PREDICTIONS = ["velocity", "noise", "data", "score"]
POINTS = np.random.default_rng(0).normal(size=(5, 2)) * 2.0
BETAS = np.linspace(1e-4, 0.02, 1000)


def moments(angle):
    """Mean and covariance of y = sin x_1 + cos e for x_1 ~ N(MEAN, COVARIANCE)."""
    return np.sin(angle) * MEAN, np.sin(angle) ** 2 * COVARIANCE + np.cos(angle) ** 2 * EYE


def true_score(angle, y):
    mean, covariance = moments(angle)
    return -np.linalg.solve(covariance, y - mean)


def true_noise(angle, y):
    return -np.cos(angle) * true_score(angle, y)


def true_data(angle, y):
    mean, covariance = moments(angle)
    return MEAN + np.sin(angle) * COVARIANCE @ np.linalg.solve(covariance, y - mean)


def true_velocity(angle, y):
    return np.cos(angle) * true_data(angle, y) - np.sin(angle) * true_noise(angle, y)


class Uncentered(fd.models.AbstractGaussianFlow):
    """The exact velocity for N(MEAN, COVARIANCE), in the data's own coordinates, from where its path starts to where it stops."""

    network: None
    scaling: eqx.Module
    context_scaling: eqx.Module
    reach: jax.Array
    path: fd.paths.AbstractPath

    def __init__(self, path):
        self.network = None
        self.scaling, self.context_scaling = identity_scaling((2,)), identity_scaling((0,))
        self.reach = jnp.asarray(jnp.inf)
        self.path = path

    def network_velocity(self, time, state, context):
        sine, cosine = jnp.sin(time), jnp.cos(time)
        covariance = sine**2 * COVARIANCE + cosine**2 * EYE
        away = jnp.linalg.solve(covariance, state - sine * MEAN)
        return cosine * MEAN + cosine * sine * (COVARIANCE - EYE) @ away, None

    def reference_velocity(self, time, state, context):
        return zero_velocity(state)

    def velocity_scale(self, time):
        return 1.0

    def angle(self, t):
        return self.path.angle(t)

    def times(self, steps):
        return self.path.grid(steps)


def test_score_noise_and_data_follow_from_the_velocity():
    with x64():
        model = Uncentered(fd.paths.CondOT())
        for angle in (0.05, 0.4, 1.0, 1.5):
            for y in POINTS:
                arguments = (jnp.asarray(angle), jnp.asarray(y), NO_CONTEXT)
                np.testing.assert_allclose(model.velocity(*arguments), true_velocity(angle, y), rtol=1e-10, atol=1e-12)
                np.testing.assert_allclose(model.score(*arguments), true_score(angle, y), rtol=1e-10, atol=1e-12)
                np.testing.assert_allclose(model.noise(*arguments), true_noise(angle, y), rtol=1e-10, atol=1e-12)
                np.testing.assert_allclose(model.denoised(*arguments), true_data(angle, y), rtol=1e-10, atol=1e-12)
                _, divergence = fd.ExactDivergence()(model, *arguments)
                covariance = moments(angle)[1]
                expected = np.cos(angle) * np.sin(angle) * np.trace((COVARIANCE - EYE) @ np.linalg.inv(covariance))
                np.testing.assert_allclose(divergence, expected, rtol=1e-10)


def image(first, last):
    """Mean and covariance of what the exact flow makes of N(0, I) between two angles."""
    values, basis = np.linalg.eigh(COVARIANCE)
    root = [basis @ np.diag(np.sqrt(np.sin(a) ** 2 * values + np.cos(a) ** 2)) @ basis.T for a in (first, last)]
    map_ = root[1] @ np.linalg.inv(root[0])
    return np.sin(last) * MEAN - map_ @ (np.sin(first) * MEAN), map_ @ map_.T


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
def test_log_prob_is_that_of_the_image_of_the_base(path):
    with x64():
        first, last = np.asarray(path.grid(1))
        density = fd.FlowDensity(Uncentered(path), solver=fd.solvers.Adaptive(rtol=1e-8, atol=1e-8))
        expected = multivariate_normal(*image(first, last)).logpdf(POINTS)
        np.testing.assert_allclose(density.log_prob(jnp.asarray(POINTS)), expected, atol=1e-5)


def kl(first, second):
    """KL divergence between two Gaussians, in nats."""
    (m, c), (n, d) = first, second
    away = n - m
    change = np.linalg.solve(d, c)
    return 0.5 * (np.trace(change) - len(m) + away @ np.linalg.solve(d, away) - np.linalg.slogdet(change)[1])


def test_what_a_path_leaves_out_is_small_and_vanishes_with_its_ends():
    """The image of the base against the data themselves: what a(0), sigma_max and sigma_min cost."""

    def distance(path):
        with x64():
            return kl(image(*np.asarray(path.grid(1))), (MEAN, COVARIANCE))

    assert distance(fd.paths.CondOT()) < 1e-12
    assert distance(fd.paths.Trigonometric()) < 1e-12
    assert 1e-8 < distance(fd.paths.VariancePreserving()) < 1e-4
    assert distance(fd.paths.VariancePreserving(beta_max=30.0)) < 0.01 * distance(fd.paths.VariancePreserving())
    assert 1e-8 < distance(fd.paths.VarianceExploding()) < 1e-3
    assert distance(fd.paths.VarianceExploding(sigma_min=1e-3, sigma_max=1e3)) < 0.02 * distance(
        fd.paths.VarianceExploding()
    )


# Models that are trained here ----------------------------------------------------------------------


def events():
    return MEAN + np.random.default_rng(1).normal(size=(400, 2)) @ np.linalg.cholesky(COVARIANCE).T


def diffusion(prediction, path=None, size=0.0):
    flow = untrained_flow(jr.key(0), events())
    last = jax.tree.map(lambda leaf: size * jr.normal(jr.key(1), leaf.shape), flow.network.outward)
    return fd.models.GaussianFlow(
        network=eqx.tree_at(lambda n: n.outward, flow.network, last),
        path=path or fd.paths.VariancePreserving(),
        prediction=prediction,
        scaling=flow.scaling,
        context_scaling=flow.context_scaling,
        reach=flow.reach,
    )


@pytest.mark.parametrize(
    ("prediction", "path"),
    [*(("velocity", name) for name in PATHS), *((each, "VariancePreserving") for each in PREDICTIONS[1:])],
)
def test_an_untrained_diffusion_is_the_fitted_gaussian(prediction, path):
    """A prediction decides where a path's grid is cut short, which is tested for every pair below."""
    model = diffusion(prediction, PATHS[path])
    factor = np.asarray(model.scaling.scale, np.float64)
    expected = multivariate_normal(np.asarray(model.scaling.location, np.float64), factor @ factor.T).logpdf(POINTS)
    density = fd.FlowDensity(model)
    np.testing.assert_allclose(density.log_prob(np.float32(POINTS)), expected, rtol=32 * EPS32, atol=32 * EPS32)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_network_predicts_what_it_is_said_to(prediction):
    """The departure from what the fitted Gaussian would have, which is -y for the score, and scaled by the cosine there."""
    with x64():
        model = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), diffusion(prediction, size=0.3))
        for angle in (0.05, 0.8, 1.5):
            y = jnp.array([0.3, -0.8])
            raw, _ = model.network(jnp.asarray(angle), y, NO_CONTEXT)
            arguments = (jnp.asarray(angle), y, NO_CONTEXT)
            # Well within the reach of the data the squash is the identity to a few parts in a thousand.
            expected = {
                "velocity": (model.velocity(*arguments), raw),
                "noise": (model.noise(*arguments) - np.cos(angle) * y, raw),
                "data": (model.denoised(*arguments) - np.sin(angle) * y, raw),
                "score": (np.cos(angle) * (model.score(*arguments) + y), raw),
            }[prediction]
            np.testing.assert_allclose(*expected, rtol=0.02)


@pytest.mark.parametrize("steps", [16, 64, 256])
@pytest.mark.parametrize("path", [*PATHS.values(), fd.paths.VarianceExploding(0.002, 500.0)], ids=[*PATHS, "wide"])
def test_the_whole_circle_is_solved_but_for_what_is_not_determined(path, steps):
    ends = {prediction: np.asarray(diffusion(prediction, path).times(steps)) for prediction in PREDICTIONS}
    for grid in ends.values():
        assert grid.shape == (steps + 1,)
        assert np.all(np.diff(grid) > 0.0), "a step of no length"
    half = 0.5 * np.pi
    np.testing.assert_allclose(ends["velocity"][[0, -1]], [0.0, half], atol=1e-6)
    np.testing.assert_allclose(ends["noise"][[0, -1]], [0.01, half], atol=1e-6)
    np.testing.assert_allclose(ends["score"][[0, -1]], [0.01, half], atol=1e-6)
    np.testing.assert_allclose(ends["data"][[0, -1]], [0.0, half - 0.01], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prediction", "path"),
    [
        *((each, fd.paths.VarianceExploding(0.002, 500.0)) for each in PREDICTIONS),
        ("noise", fd.paths.VariancePreserving()),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_diffusion_is_sampled_by_its_reverse_on_any_path(prediction, path):
    """Some steps of these paths are at angles that are cut off. A network of zeros is the fitted Gaussian."""
    model = diffusion(prediction, path)
    draws = fd.FlowDensity(model).sample_diffusion(jr.key(3), (2000,))
    white, _ = jax.vmap(model.scaling.whiten)(draws)
    assert kstest(np.ravel(white), norm.cdf).pvalue > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_log_prob_of_a_diffusion_is_finite_everywhere(prediction):
    density = fd.FlowDensity(diffusion(prediction, size=0.3))
    far = 1e3 * np.float32(POINTS)
    value, slope = jax.vmap(jax.value_and_grad(density.log_prob))(jnp.concatenate([np.float32(POINTS), far]))
    assert np.all(np.isfinite(value))
    assert np.all(np.isfinite(slope))
    assert np.all(np.sum(np.asarray(slope)[len(POINTS) :] * (far - MEAN), axis=1) < 0.0)


def test_an_unknown_prediction_is_refused():
    with pytest.raises(ValueError, match=r"expected `prediction`.*got 'x0'.*Fix: "):
        diffusion("x0")
    with pytest.raises(ValueError, match=r"fit_diffusion expected `prediction`.*got 'x0'.*Fix: "):
        fd.fit_diffusion(jr.key(0), events(), prediction="x0")


# Pretrained networks ----------------------------------------------------------------------------------


class Exact(eqx.Module):
    """What a perfectly trained DDPM network says at its own step i, in numpy's terms."""

    prediction: str = eqx.field(static=True)

    def __call__(self, step, x, context):
        kept = jnp.interp(step, jnp.arange(1000.0), jnp.cumprod(1.0 - BETAS))
        a, s = jnp.sqrt(kept), jnp.sqrt(1.0 - kept)
        away = jnp.linalg.solve(kept * COVARIANCE + (1.0 - kept) * EYE, x - a * MEAN)
        noise, data = s * away, MEAN + a * COVARIANCE @ away
        return {"noise": noise, "data": data, "score": -away, "velocity": a * noise - s * data}[self.prediction]


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_ddpm_network_is_put_on_the_circle(prediction):
    with x64():
        model = fd.from_ddpm(Exact(prediction), (2,), betas=BETAS, predicts=prediction)
        kept = np.cumprod(1.0 - BETAS)
        first, last = np.asarray(model.times(1))
        np.testing.assert_allclose(np.sin([first, last]) ** 2, [kept[-1], kept[0]], rtol=1e-10)
        for step in (0, 10, 500, 999):
            angle = np.arctan2(np.sqrt(kept[step]), np.sqrt(1.0 - kept[step]))
            for y in POINTS:
                velocity = model.velocity(jnp.asarray(angle), jnp.asarray(y), NO_CONTEXT)
                # 1/cos is 100 at the data end and 1/sin 156 at the noise: rounding is amplified as much.
                np.testing.assert_allclose(velocity, true_velocity(angle, y), rtol=1e-10, atol=1e-10)
        density = fd.FlowDensity(model, solver=fd.FixedStep(400))
        expected = multivariate_normal(*image(first, last)).logpdf(POINTS)
        # The schedule is linear between the network's steps, where the exact velocity is not asked for.
        np.testing.assert_allclose(density.log_prob(jnp.asarray(POINTS)), expected, atol=1e-3)


class Denoiser(eqx.Module):
    """The exact E[x_1 | x_1 + sigma e = x]."""

    def __call__(self, sigma, x, context):
        return MEAN + COVARIANCE @ jnp.linalg.solve(COVARIANCE + sigma**2 * EYE, x - MEAN)


class Raw(eqx.Module):
    """The raw network inside the exact denoiser's preconditioning, with sigma_data = 0.7."""

    def __call__(self, c_noise, scaled, context):
        sigma, sigma_data = jnp.exp(4.0 * c_noise), 0.7
        total = jnp.sqrt(sigma**2 + sigma_data**2)
        x = scaled * total
        skip, out = sigma_data**2 / total**2, sigma * sigma_data / total
        return (Denoiser()(sigma, x, context) - skip * x) / out


@pytest.mark.parametrize("preconditioned", [True, False])
def test_an_edm_network_is_put_on_the_circle(preconditioned):
    network = Denoiser() if preconditioned else Raw()
    with x64():
        model = fd.from_edm(
            network, (2,), sigma_data=0.7, sigma_min=0.01, sigma_max=50.0, preconditioned=preconditioned
        )
        first, last = np.asarray(model.times(1))
        np.testing.assert_allclose(0.7 / np.tan([first, last]), [50.0, 0.01], rtol=1e-10)
        # In units of sigma_data the data are N(MEAN, COVARIANCE)/0.7: the law of the ODE's end is known by its moments.
        values, basis = np.linalg.eigh(COVARIANCE / 0.49)
        root = [basis @ np.diag(np.sqrt(np.sin(a) ** 2 * values + np.cos(a) ** 2)) @ basis.T for a in (first, last)]
        map_ = root[1] @ np.linalg.inv(root[0])
        mean = np.sin(last) * MEAN - map_ @ (np.sin(first) * MEAN)
        expected = multivariate_normal(mean, 0.49 * map_ @ map_.T).logpdf(POINTS)
        density = fd.FlowDensity(model, solver=fd.solvers.Adaptive(rtol=1e-8, atol=1e-8))
        np.testing.assert_allclose(density.log_prob(jnp.asarray(POINTS)), expected, atol=1e-5)


def test_pretrained_networks_of_another_shape_or_schedule_are_refused():
    with pytest.raises(
        ValueError, match=r"from_ddpm expected the callable's output in the shape of one event, \(2,\).*Fix: "
    ):
        fd.from_ddpm(lambda t, x, c: x[:1], (2,), betas=BETAS)
    with pytest.raises(ValueError, match=r"from_ddpm expected `betas`.*Fix: "):
        fd.from_ddpm(Exact("noise"), (2,), betas=[0.1, 2.0])
    with pytest.raises(ValueError, match=r"from_ddpm expected `predicts`.*Fix: "):
        fd.from_ddpm(Exact("noise"), (2,), betas=BETAS, predicts="epsilon")
    with pytest.raises(ValueError, match=r"from_edm expected `sigma_min` < `sigma_max`.*Fix: "):
        fd.from_edm(Denoiser(), (2,), sigma_min=90.0)
    with pytest.raises(TypeError, match=r"callable.*got int.*Fix: "):
        fd.from_ddpm(3, (2,), betas=BETAS)


# The reverse diffusion --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "strength"),
    [
        *((path, 1.0) for path in PATHS.values()),
        (fd.paths.VariancePreserving(), 0.0),
        (fd.paths.VariancePreserving(), 4.0),
    ],
    ids=[*PATHS, "weak", "strong"],
)
def test_the_reverse_diffusion_ends_where_the_ode_does(path, strength):
    count = 10_000
    with x64():
        model = Uncentered(path)
        keys, noise = jr.split(jr.key(2), count), jr.normal(jr.key(3), (count, 2))
        draws = jax.jit(
            jax.vmap(lambda k, z: solving.event_from_diffusion(model, k, z, NO_CONTEXT, 64, strength)),
        )(keys, noise)
        first, last = np.asarray(path.grid(1))
    mean, covariance = image(first, last)
    for direction in ([1.0, 0.0], [0.0, 1.0], [0.6, -0.8]):
        law = norm(mean @ direction, np.sqrt(direction @ covariance @ np.asarray(direction)))
        # Weak errors of 64 steps of an order-1.5 method stay below what 10,000 draws resolve.
        assert kstest(np.asarray(draws) @ direction, law.cdf).pvalue > 1e-5


@pytest.mark.slow
def test_diffused_samples_of_a_density():
    density = fd.FlowDensity(ExactGaussianFlow(MEAN, COVARIANCE, np.array([[0.5], [0.0]]))).given(
        np.array([[0.0], [10.0]])
    )
    draws = np.asarray(density.sample_diffusion(jr.key(4), (3000,)), np.float64)
    assert draws.shape == (3000, 2, 2)
    expected = np.stack([MEAN, MEAN + np.array([5.0, 0.0])])
    assert np.all(np.abs(draws.mean(0) - expected) < 4.5 * draws.std(0) / np.sqrt(3000))
    np.testing.assert_array_equal(draws[0], np.asarray(density.sample_diffusion(jr.key(4), (3000,)))[0])
    with pytest.raises(ValueError, match=r"sample_diffusion expected `steps`.*Fix: "):
        density.sample_diffusion(jr.key(4), steps=0)
