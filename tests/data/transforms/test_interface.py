"""The contract of a transform: it inverts, its log determinant is that of its Jacobian, and a chain composes."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.distributions import constraints
from references import x64

from flowdensity._registry import NAMES
from flowdensity.data.scaling import fit_scaling
from flowdensity.data.supports import joint
from flowdensity.data.transforms import candidates
from flowdensity.data.transforms.affine import Affine
from flowdensity.data.transforms.interface import AbstractTransform, Chain
from flowdensity.data.transforms.johnson import JohnsonSU
from flowdensity.data.transforms.marginal import MarginalGaussianization
from flowdensity.data.transforms.radial import RadialGaussianization
from flowdensity.data.transforms.support import FromSupport

ROOT = np.array([[1.2, 0.3, 0.0], [0.3, 0.8, -0.2], [0.0, -0.2, 1.0]])
PARAMETERS = np.array([[0.5, 0.0, -2.0], [2.0, 1.0, 0.3], [-0.7, 0.0, 0.4], [0.8, 1.0, 1.5]])
CONTRIBUTING = Path(__file__).parents[3] / "CONTRIBUTING.md"


def johnson() -> JohnsonSU:
    return JohnsonSU(PARAMETERS, np.array([True, False, True]))


TRANSFORMS = {
    "affine": lambda: Affine(np.array([0.1, -2.0, 3.0]), ROOT),
    "diagonal": lambda: Affine(np.array([0.1, -2.0, 3.0]), np.array([0.5, 2.0, 30.0])),
    "from the real line": lambda: FromSupport(constraints.real, (3,)),
    "from positive numbers": lambda: FromSupport(constraints.positive, (3,)),
    "from parts": lambda: FromSupport(joint([constraints.positive, constraints.real], ((1,), (2,))), (3,)),
    "johnson": johnson,
    "marginal": lambda: MarginalGaussianization(np.array([2]), np.array([[0.0, 1.0]]), np.array([[0.3, 0.2]])),
    "radial": lambda: RadialGaussianization(np.array([0.1, 0.2, -1.0]), ROOT, 2.5),
    "chain": lambda: Chain((FromSupport(constraints.positive, (3,)), johnson(), Affine(np.zeros(3), ROOT))),
    "empty chain": lambda: Chain(()),
}
EVENTS = np.random.default_rng(0).uniform(0.1, 3.0, size=(5, 3))


@pytest.mark.parametrize("make", TRANSFORMS.values(), ids=TRANSFORMS)
def test_inverse_and_log_determinant(make):
    with x64():
        transform = make()
        for event in jnp.asarray(EVENTS):
            image, log_det = transform.forward_and_log_det(event)
            assert image.shape == (3,)
            assert log_det.shape == ()
            np.testing.assert_allclose(transform.inverse(image), event, rtol=1e-9)
            jacobian = jax.jacfwd(lambda x: transform.forward_and_log_det(x)[0])(event)
            np.testing.assert_allclose(log_det, np.linalg.slogdet(jacobian)[1], rtol=1e-9, atol=1e-12)


def test_every_transform_can_be_saved():
    def below(cls: type) -> set[type]:
        return {cls} | {each for sub in cls.__subclasses__() for each in below(sub)}

    own = {cls for cls in below(AbstractTransform) if cls.__module__.startswith("flowdensity.")}
    assert own - {AbstractTransform} == set(NAMES) & own
    assert {Affine, JohnsonSU, RadialGaussianization} < own


def test_a_chain_reports_the_transforms_that_have_something_to_report():
    chain = Chain((FromSupport(constraints.real, (3,)), johnson(), TRANSFORMS["radial"](), Affine(np.zeros(3), ROOT)))
    expected = "Johnson SU transform of 'a', 'b'; radial Gaussianization with 2.5 degrees of freedom"
    assert chain.summary(["'a'", "'a'", "'b'"]) == expected
    assert Chain(()).summary(["0"]) == ""


def test_candidates_are_applied_in_their_order_and_recorded_in_default_precision(monkeypatch):
    """Each is fitted to the table that the ones before it have transformed, in float64."""
    seen = []

    def fit(table: np.ndarray, weights: np.ndarray | None) -> Affine:
        seen.append(table)
        return Affine(table.mean(axis=0), np.full(2, 2.0))

    monkeypatch.setattr(candidates, "COORDINATEWISE", (fit, fit))
    events = 1e6 + np.random.default_rng(1).normal(size=(50, 2))
    scaling, _ = fit_scaling(events)
    np.testing.assert_array_equal(seen[0], events)
    np.testing.assert_allclose(seen[1], (events - events.mean(axis=0)) / 2.0, atol=1e-9)
    first, second = scaling.chain.transforms[1:-1]
    np.testing.assert_allclose(first.location, events.mean(axis=0), rtol=1e-7)
    np.testing.assert_allclose(second.location, 0.0, atol=1e-9)
    assert first.location.dtype == jnp.float32


def test_the_example_of_contributing_runs(monkeypatch):
    section = CONTRIBUTING.read_text().split("## How to add a transform")[1].split("\n## ")[0]
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", section, re.DOTALL):
        exec(block, names)
    rng = np.random.default_rng(2)
    cubed = rng.normal(size=(500, 2)) ** 3
    monkeypatch.setattr(candidates, "COORDINATEWISE", (names["fit_signed_power"],))
    monkeypatch.setattr(candidates, "RADIAL", ())
    with x64():
        scaling, white = fit_scaling(cubed)
        assert scaling.summary() == "columns: signed power 0.5"
        states, log_dets = jax.vmap(scaling.whiten)(jnp.asarray(cubed))
        np.testing.assert_allclose(states, white, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(jax.vmap(scaling.unwhiten)(states), cubed, rtol=1e-9, atol=1e-12)
        jacobian = jax.jacfwd(lambda x: scaling.whiten(x)[0])(jnp.asarray(cubed[0]))
        np.testing.assert_allclose(log_dets[0], np.linalg.slogdet(jacobian)[1], rtol=1e-9)
    assert fit_scaling(rng.normal(size=(500, 2)))[0].summary() == "columns: whitened, none transformed"
    assert issubclass(names["SignedPower"], AbstractTransform)
