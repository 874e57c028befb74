"""Draws where a density has seen no data are found, by levels that a Gaussian has in closed form."""

import warnings

import arviz as az
import jax.random as jr
import numpy as np
import pytest
from numpyro.distributions import constraints
from references import (
    CONTEXTS,
    GAUSSIAN_COVARIANCE,
    GAUSSIAN_MEAN,
    NAMED,
    ExactGaussianFlow,
    amortized,
    conditional_gaussian_flow,
    gaussian_flow,
    named_flow,
)

import flowdensity as fd

GAUSSIAN = fd.FlowDensity(gaussian_flow())


def posterior(**variables):
    return az.from_dict({"posterior": variables}) if hasattr(az, "convert_to_datatree") else az.from_dict(variables)


def rays(radii, count=50):
    """Events at some radii of the Gaussian, shape `(radii, count, 2)`."""
    angle = np.linspace(0.0, 2.0 * np.pi, count)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    return GAUSSIAN_MEAN + np.asarray(radii)[:, None, None] * (circle @ np.linalg.cholesky(GAUSSIAN_COVARIANCE).T)


def test_levels_are_those_of_the_closed_form():
    radii = np.array([0.1, 1.0, 2.0, 3.0])
    with pytest.warns(UserWarning, match="an extrapolation"):  # at radius 6 there is nothing
        found = fd.check_support(posterior(theta=rays([*radii, 6.0])), GAUSSIAN)
    # In two dimensions the mass beyond a radius is exp(-r^2 / 2); counted among so many samples.
    mass = np.exp(-0.5 * radii**2)
    error = np.sqrt(mass * (1.0 - mass) / found.reference)
    assert found.level.shape == (5, 50)
    assert np.all(np.abs(found.level[:4] - mass[:, None]) < 5.0 * error[:, None] + 1e-3)
    assert not found.outside[:4].any()
    assert found.outside[4].all()
    assert found.share == 0.2


def test_the_densitys_own_draws_pass():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fd.check_support(posterior(theta=np.asarray(GAUSSIAN.sample(jr.key(1), (2, 1000)))), GAUSSIAN)
    assert found.share < 0.005
    assert "The posterior lies where the density has data" in str(found)
    assert not found.calibrated


def test_the_data_of_a_learned_density_pass(mixture_fit):
    found = fd.check_support(posterior(theta=mixture_fit.data[None, :1000]), mixture_fit.density)
    assert found.share < 0.01


def test_held_out_data_calibrate_what_samples_cannot():
    """Data four times as wide as the density: among themselves they are not outside."""
    rng = np.random.default_rng(0)
    wide = GAUSSIAN_MEAN + 4.0 * rng.normal(size=(2, 500, 2)) @ np.linalg.cholesky(GAUSSIAN_COVARIANCE).T
    with pytest.warns(UserWarning, match="samples of the density"):
        assert fd.check_support(posterior(theta=wide[:1]), GAUSSIAN).share > 0.3
    found = fd.check_support(posterior(theta=wide[:1]), GAUSSIAN, data=wide[1])
    assert found.calibrated
    assert found.reference == 500
    assert found.share < 0.01


def test_few_held_out_rows_raise_no_false_alarm():
    """Below all of 40 rows lies one in 41 of draws of the same law."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(20):
            draws, rows = GAUSSIAN.sample(jr.key(100 + seed), (540,)), slice(500, None)
            found = fd.check_support(posterior(theta=np.asarray(draws)[None, :500]), GAUSSIAN, data=draws[rows])
            assert found.limit == 10.0 / 41.0
    with pytest.warns(UserWarning, match=r"100\.00% of the draws have a lower density than all of 40 held-out rows"):
        fd.check_support(posterior(theta=rays([9.0])), GAUSSIAN, data=draws[rows])


def test_the_edge_of_a_support_is_outside():
    flow = ExactGaussianFlow(np.zeros(1), np.eye(1), support=constraints.unit_interval, event_shape=())
    with pytest.warns(UserWarning, match="an extrapolation"):
        found = fd.check_support(posterior(theta=np.zeros((1, 50))), fd.FlowDensity(flow))
    assert found.share == 1.0


def test_events_in_a_plate_are_counted_each():
    events = np.stack([rays([0.5, 1.0]), rays([9.0, 9.0])], axis=2)  # chain, draw, event, coordinate
    with pytest.warns(UserWarning, match=r"50\.00% .* in 1 of 2 events"):
        found = fd.check_support(posterior(theta=events), GAUSSIAN)
    assert found.outside[..., 1].all()
    assert not found.outside[..., 0].any()


@pytest.mark.slow
def test_named_sites_are_found_by_their_names():
    density = fd.FlowDensity(named_flow())
    values = {name: np.asarray(v) for name, v in density.unpack(density.sample(jr.key(2), (1, 400))).items()}
    found = fd.check_support(posterior(other=np.zeros((1, 400)), **values), density)
    assert set(NAMED.names) <= set(values)
    assert found.share < 0.01


@pytest.mark.slow
def test_an_amortized_density_and_one_with_a_context():
    fast = amortized(GAUSSIAN)
    assert fd.check_support(posterior(theta=np.asarray(fast.sample(jr.key(3), (1, 300)))), fast).level.shape == (1, 300)
    given = fd.FlowDensity(conditional_gaussian_flow(), CONTEXTS[1])
    assert fd.check_support(posterior(theta=np.asarray(given.sample(jr.key(4), (1, 300)))), given).share < 0.02


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fd.check_support(posterior(theta=rays([1.0])), "density"), TypeError, "expected `density`"),
        (lambda: fd.check_support(rays([1.0]), GAUSSIAN), TypeError, "expected `posterior` in arviz's form"),
        (
            lambda: fd.check_support(posterior(a=rays([1.0]), b=rays([1.0])), GAUSSIAN),
            ValueError,
            r"of that shape are \['a', 'b'\]",
        ),
        (lambda: fd.check_support(posterior(a=rays([1.0])[..., :1]), GAUSSIAN), ValueError, r"of that shape are \[\]"),
        (lambda: fd.check_support(posterior(a=rays([1.0])), GAUSSIAN, site="b"), ValueError, "got 'b'"),
        (
            lambda: fd.check_support(posterior(a=rays([1.0])), fd.FlowDensity(conditional_gaussian_flow(), CONTEXTS)),
            ValueError,
            r"without batch axes; got batch shape \(4,\)",
        ),
        (
            lambda: fd.check_support(posterior(a=rays([1.0])), GAUSSIAN, data=np.eye(3)),
            ValueError,
            "expected `data`",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=f"^check_support .*{message}"):
        call()
