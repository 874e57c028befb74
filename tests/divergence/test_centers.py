"""Where kernels are drawn: on the path whatever their width, on trajectories, and farther out."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from references import random_flow

import flowdensity as fd
from flowdensity.data.tables import Sample
from flowdensity.divergence.centers import HalvedCenters, PathCenters, TrajectoryCenters, mismatched
from flowdensity.solving import trajectory
from flowdensity.training import divergence
from flowdensity.training.divergence import centers_about_data, centers_about_samples

COUNT = 50_000


def spread(values) -> tuple[float, float]:
    values = np.asarray(values, np.float64)
    return values.mean(), values.std(ddof=1) / np.sqrt(len(values))


RADIUS = np.array([3.0, 4.0])


def kernels(rho, tails, count=COUNT):
    sample = Sample(jnp.asarray(RADIUS, jnp.float32)[None], jnp.array([[7.0]]))
    return PathCenters(sample, random_flow(jr.key(3), 2, 1)).draw(jr.key(4), count, rho=rho, tails=tails, directions=1)


def test_with_rho_one_and_no_tails_the_centers_are_the_data_on_the_path():
    drawn = kernels(1.0, 0.0, count=1000)
    np.testing.assert_allclose(drawn.center, np.sin(drawn.time)[:, None] * RADIUS, rtol=1e-5)
    np.testing.assert_allclose(drawn.width, np.maximum(np.cos(drawn.time), 0.01), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(drawn.context, np.full((1000, 1), 7.0))
    assert np.all((np.asarray(drawn.time) >= 0.0) & (np.asarray(drawn.time) <= np.pi / 2.0 + 1e-6))


@pytest.mark.parametrize("rho", [0.1, 0.5, 1.0])
def test_points_have_the_law_of_the_path_whatever_rho(rho):
    """y = c + h eta = sin x_1 + cos e in law: center and kernel share the noise out between them."""
    drawn = kernels(rho, 0.0)
    wide = rho * np.cos(drawn.time) > 0.01
    noise = (drawn.center + drawn.width[:, None] * drawn.noise[:, 0] - np.sin(drawn.time)[:, None] * RADIUS)[wide]
    noise = np.asarray(noise / np.cos(drawn.time)[wide][:, None], np.float64)
    count = wide.sum()
    assert count > 0.8 * COUNT
    assert np.all(np.abs(noise.mean(0)) < 4.5 / np.sqrt(count))
    np.testing.assert_allclose(np.cov(noise.T), np.eye(2), atol=4.5 * np.sqrt(2.0 / count))
    angles = np.asarray(drawn.time)[wide]
    assert abs(np.corrcoef(angles, np.square(noise).sum(1))[0, 1]) < 4.5 / np.sqrt(count)


def test_a_share_of_the_centers_is_inflated_up_to_ten_times():
    tails = 0.15
    drawn = kernels(1.0, tails)
    middle = np.sin(drawn.time) > 0.1
    stretch = (np.asarray(drawn.center) / (np.sin(drawn.time)[:, None] * RADIUS))[middle, 0]
    count = middle.sum()
    assert stretch.min() > 1.0 - 1e-5
    assert stretch.max() < 10.0 + 1e-4
    inflated = stretch > 1.0 + 1e-5
    assert abs(inflated.mean() - tails) < 4.5 * np.sqrt(tails * (1.0 - tails) / count)
    mean, error = spread(np.log(stretch[inflated]) / np.log(10.0))
    assert abs(mean - 0.5) < 4.5 * error  # uniform in the logarithm


def test_a_share_of_the_centers_has_the_context_of_another():
    tails, contexts = 0.2, jnp.arange(1.0, 1001.0)[:, None]
    sample = Sample(jnp.tile(contexts, (1, 2)), contexts)
    drawn = PathCenters(sample, random_flow(jr.key(3), 2, 1)).draw(jr.key(4), COUNT, rho=1.0, tails=tails, directions=1)
    middle = np.sin(drawn.time) > 0.1
    # A center is its row's number, times the sine, times what it is moved outwards by.
    ratio = (np.asarray(drawn.context) * np.sin(drawn.time)[:, None] / np.asarray(drawn.center))[middle, 0]
    of_their_own = np.isclose(ratio, 1.0, rtol=1e-4)
    expected = (1.0 - tails) ** 2
    assert abs(of_their_own.mean() - expected) < 4.5 * np.sqrt(expected * (1.0 - expected) / middle.sum()) + 1e-3
    # Half of the others are moved outwards: they are no whole numbers any more.
    context = np.asarray(drawn.context)[:, 0]
    share, expected = np.mean(np.abs(context - np.round(context)) > 1e-4), 0.5 * tails
    assert abs(share - expected) < 4.5 * np.sqrt(expected * (1.0 - expected) / COUNT) + 1e-3
    assert context.max() > 5_000.0
    none = mismatched(jr.key(0), jnp.zeros((3, 0)), 1.0)
    assert none.shape == (3, 0)


def test_trajectory_centers_lie_on_the_trajectories():
    """Straight lines, so that whatever is between the nodes is on them too; without tails."""
    times = jnp.array([2.0, 1.0, 0.5, 0.0])  # a model's time may run down
    starts = jr.normal(jr.key(5), (50, 1, 2))
    slopes = jr.normal(jr.key(6), (50, 1, 2))
    states = starts + slopes * (2.0 - times)[:, None]
    drawn = TrajectoryCenters(times, states, jnp.arange(50.0)[:, None]).draw(
        jr.key(7), 5000, rho=0.1, tails=0.0, directions=2
    )
    row = np.asarray(drawn.context[:, 0], int)
    expected = (starts + slopes * (2.0 - drawn.time)[None, :, None])[row, np.arange(5000)]
    np.testing.assert_allclose(drawn.center, expected, atol=1e-5)
    assert drawn.noise.shape == (5000, 2, 2)
    # One time to a stratum of equal shares between the nodes.
    share = [np.mean(np.asarray(drawn.time) > t) for t in (1.0, 0.5)]
    np.testing.assert_allclose(share, [1.0 / 3.0, 2.0 / 3.0], atol=1.0 / 5000)
    # Widths are a tenth of the spread of the trajectories, linear between the nodes.
    middle = np.asarray(states).mean(0)
    widths = 0.1 * np.sqrt(np.mean((np.asarray(states) - middle) ** 2, axis=(0, 2)))
    np.testing.assert_allclose(drawn.width, np.interp(-drawn.time, -times, widths), rtol=1e-4)


def test_inflated_trajectories_are_moved_away_from_their_mean():
    states = 100.0 + jr.normal(jr.key(8), (2000, 2, 3))
    centers = TrajectoryCenters(jnp.array([0.0, 1.0]), states, jnp.zeros((2000, 0)))
    near, far = (
        np.asarray(centers.draw(jr.key(9), 20_000, rho=0.1, tails=tails, directions=1).center, np.float64)
        for tails in (0.0, 1.0)
    )
    assert np.all(np.abs(far.mean(0) - 100.0) < 1.0)
    ratio = np.linalg.norm(far - 100.0, axis=1) / np.linalg.norm(near - 100.0, axis=1)
    # The mean of the states is near 100 and not 100 itself.
    assert np.quantile(ratio, 0.01) > 0.95
    assert np.quantile(ratio, 0.99) < 10.5
    mean, error = spread(np.log(ratio) / np.log(10.0))
    assert abs(mean - 0.5) < 4.5 * error + 0.01


def test_widths_that_are_given_take_the_place_of_the_spread():
    states = jr.normal(jr.key(10), (20, 3, 2))
    times, widths = jnp.array([0.0, 0.5, 1.0]), jnp.array([3.0, 1.0, 0.0])
    drawn = TrajectoryCenters(times, states, jnp.zeros((20, 0)), widths).draw(
        jr.key(11), 500, rho=0.2, tails=0.0, directions=1
    )
    np.testing.assert_allclose(drawn.width, np.maximum(0.2 * np.interp(drawn.time, times, widths), 0.01), rtol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_halved_centers_are_half_of_the_one_law_and_half_of_the_other(count):
    model = random_flow(jr.key(3), 2, 1)
    first, second = (PathCenters(Sample(jnp.ones((1, 2)), jnp.full((1, 1), which)), model) for which in (1.0, 2.0))
    drawn = HalvedCenters(first, second).draw(jr.key(12), count, rho=0.1, tails=0.0, directions=2)
    assert np.sum(np.asarray(drawn.context) == 1.0) == count // 2
    assert np.sum(np.asarray(drawn.context) == 2.0) == count - count // 2
    assert drawn.noise.shape == (count, 2, 2)


def a_flow_and_rows():
    """Three rows far apart, and a flow that does not make them."""
    states = jnp.array([[2.0, 0.0], [-1.0, 2.0], [-1.0, -2.0]])
    return random_flow(jr.key(13), 2, size=0.3), Sample(states, jnp.zeros((3, 0)))


def ends(model, drawn):
    """Where the trajectories through kernel centers end."""

    def end(time, state):
        nodes = jnp.linspace(time, 0.5 * jnp.pi, 2)
        return trajectory(model, nodes, state, jnp.zeros(0), fd.FixedStep(32))[-1]

    return np.asarray(jax.vmap(end)(drawn.time, drawn.center), np.float64)


def test_half_of_the_centers_about_the_data_are_on_the_trajectories_through_it():
    model, rows = a_flow_and_rows()
    centers = centers_about_data(jr.key(14), model, rows, 1000)
    drawn = centers.draw(jr.key(15), 2000, rho=0.1, tails=0.0, directions=1)
    distance = np.linalg.norm(ends(model, drawn)[:, None] - np.asarray(rows.states), axis=2).min(axis=1)
    # Between the nodes a trajectory is a chord; on the path the noise leads elsewhere but near its end.
    assert np.max(distance[1000:]) < 0.05
    assert np.mean(distance[:1000] > 0.05) > 0.8
    # Their kernels are as wide as those of the path.
    np.testing.assert_allclose(drawn.width[1000:], np.maximum(0.1 * np.cos(drawn.time[1000:]), 0.01), atol=5e-4)


def test_trajectories_that_would_not_fit_into_memory_are_fewer(monkeypatch):
    monkeypatch.setattr(divergence, "MAX_TRAJECTORY_ENTRIES", 2 * 17 * 2)
    model, rows = a_flow_and_rows()
    about_data = centers_about_data(jr.key(16), model, rows, 1000)
    assert about_data.first.sample.states.shape == (3, 2)
    assert about_data.second.states.shape == (2, 17, 2)
    assert centers_about_samples(jr.key(17), model, rows, 1000).sample.states.shape == (2, 2)
