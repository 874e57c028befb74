"""Every Gaussian path is the same function of its angle, and differs in how the angle depends on time."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from references import EPS32, x64

import flowdensity as fd
from flowdensity.models.paths import stratified_times

PATHS = {"CondOT": fd.paths.CondOT(), "Trigonometric": fd.paths.Trigonometric()}
paths = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())


@paths
@pytest.mark.parametrize("steps", [1, 2, 16, 257])
def test_the_grid_goes_up_from_noise_to_data(path, steps):
    grid = np.asarray(path.grid(steps))
    assert grid.shape == (steps + 1,)
    assert np.all(np.diff(grid) > 0.0)
    # pi/2 is rounded to float32, and so is the cosine there.
    np.testing.assert_allclose(grid[[0, -1]], [0.0, np.pi / 2.0], atol=2.0 * EPS32)


@paths
def test_the_angle_is_where_the_path_is_on_the_circle(path):
    with x64():
        t = jnp.linspace(0.0, 1.0, 101)
        a, s = (np.asarray(part) for part in path.coefficients(t))
        angle = np.asarray(path.angle(t))
    q = np.hypot(a, s)
    np.testing.assert_allclose(np.sin(angle), a / q, atol=1e-15)
    np.testing.assert_allclose(np.cos(angle), s / q, atol=1e-15)


CLOSED_FORMS = {
    "CondOT": lambda t: np.arctan2(t, 1.0 - t),
    "Trigonometric": lambda t: np.pi * t / 2.0,
}


@pytest.mark.parametrize("name", PATHS)
def test_closed_form_of_the_angle(name):
    t = np.linspace(0.0, 1.0, 101)
    with x64():
        np.testing.assert_allclose(PATHS[name].angle(jnp.asarray(t)), CLOSED_FORMS[name](t), atol=1e-15)


def test_paths_hash_and_compare_by_kind():
    # numpyro hashes the static half of a distribution, and the path is part of it.
    assert fd.paths.CondOT() == fd.paths.CondOT()
    assert hash(fd.paths.CondOT()) == hash(fd.paths.CondOT())
    assert fd.paths.CondOT() != fd.paths.Trigonometric()


@pytest.mark.parametrize("count", [1, 7, 1000])
def test_times_are_one_to_a_stratum(count):
    times = np.asarray(stratified_times(jr.key(0), count))
    within = times * count - np.arange(count)
    rounding = 4.0 * EPS32 * count
    assert np.all((within >= -rounding) & (within <= 1.0 + rounding))
    if count == 1000:
        assert abs(within.mean() - 0.5) < 4.5 / np.sqrt(12.0 * count)  # uniform in its stratum
