"""The support of a vector whose parts have each their own: numpyro's bijections, side by side."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.distributions import biject_to, constraints
from references import EPS32, x64

from flowdensity.data.sites import split
from flowdensity.data.supports import check_support, joint

# name: (parts, shapes of the parts, shapes of the parts on the real line)
KEEPING = {
    "scalars": ((constraints.real, constraints.positive, constraints.interval(-2.0, 5.0)), ((),) * 3, ((),) * 3),
    "with axes": (
        (constraints.real, constraints.positive, constraints.unit_interval),
        ((2,), (2, 2), ()),
        ((2,), (2, 2), ()),
    ),
    "vectors": (
        (constraints.ordered_vector, constraints.independent(constraints.positive, 1), constraints.real_vector),
        ((2, 3), (2, 2), (2,)),
        ((2, 3), (2, 2), (2,)),
    ),
}
SHRINKING = {
    "a simplex": ((constraints.real, constraints.simplex, constraints.positive), ((), (4,), (2,)), ((), (3,), (2,))),
    "two simplices": ((constraints.simplex, constraints.corr_cholesky), ((2, 3), (3, 3)), ((2, 2), (3,))),
}
CASES = KEEPING | SHRINKING
every = pytest.mark.parametrize("name", CASES)


def compiled(function: Any) -> Any:
    """One compilation instead of one for each operation; numpyro's transforms do not hash, as `jit` would have them."""
    return jax.jit(lambda *args: function(*args))


def build(name: str, batch: tuple[int, ...] = ()):
    """The joint constraint, its bijection, and a vector on the real line and on the support."""
    parts, shapes, inner = CASES[name]
    constraint = joint(parts, shapes)
    transform = biject_to(constraint)
    length = sum(int(np.prod(shape)) for shape in inner)
    vector = jnp.asarray(np.random.default_rng(0).normal(size=(*batch, length)))
    return constraint, transform, vector, compiled(transform)(vector)


@every
def test_the_bijection_is_that_of_each_part(name):
    parts, shapes, inner = CASES[name]
    batch = (2, 3)

    @jax.jit
    def by_parts(vector):
        values, total = [], jnp.zeros(batch)
        for part, shape, x in zip(parts, shapes, split(vector, inner), strict=True):
            transform = biject_to(part)
            y = transform(x)
            stretch = transform.log_abs_det_jacobian(x, y)
            values.append(y.reshape(*batch, int(np.prod(shape))))
            total += stretch.sum(tuple(range(len(batch), stretch.ndim)))
        return jnp.concatenate(values, axis=-1), total

    with x64():
        constraint, transform, vector, value = build(name, batch)
        log_det = compiled(transform.log_abs_det_jacobian)(vector, value)
        back = compiled(transform.inv)(value)
        inside = compiled(constraint)(value)
        expected, stretch = by_parts(vector)
    assert transform.forward_shape(vector.shape) == value.shape
    assert transform.inverse_shape(value.shape) == vector.shape
    assert transform.domain is constraints.real_vector
    assert log_det.shape == inside.shape == batch
    assert np.all(inside)
    # The same float64 numbers in another order; the inverses of logits magnify their rounding.
    np.testing.assert_allclose(value, expected, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(log_det, stretch, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(back, vector, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", KEEPING)
def test_the_log_determinant_is_that_of_the_jacobian(name):
    with x64():
        _, transform, vector, value = build(name)
        _, expected = np.linalg.slogdet(compiled(jax.jacfwd(transform))(vector))
        log_det = compiled(transform.log_abs_det_jacobian)(vector, value)
    assert log_det.shape == ()
    np.testing.assert_allclose(log_det, expected, rtol=1e-11, atol=1e-11)


def test_the_log_determinant_of_a_simplex_is_that_of_its_free_coordinates():
    """Densities on a simplex are with respect to all coordinates but the last."""
    with x64():
        _, transform, vector, value = build("a simplex")
        jacobian = np.asarray(compiled(jax.jacfwd(transform))(vector))
        log_det = compiled(transform.log_abs_det_jacobian)(vector, value)
    _, expected = np.linalg.slogdet(np.delete(jacobian, 4, axis=0))  # real, four of the simplex, two positive
    np.testing.assert_allclose(log_det, expected, rtol=1e-11, atol=1e-11)


# name: (case, coordinate, value) that takes one part off its support
OUTSIDE = {
    "a number": ("scalars", 1, -1.0),
    "the end of an interval": ("scalars", 2, 5.5),
    "one of a matrix": ("with axes", 4, 0.0),
    "the last": ("with axes", 6, 1.5),
    "one order of two": ("vectors", 5, -100.0),
    "one vector of two": ("vectors", 9, -1.0),
    "a simplex": ("a simplex", 2, 0.9),
    "one simplex of two": ("two simplices", 3, 0.9),
    "not a number": ("scalars", 0, np.nan),
}


@pytest.mark.parametrize(("name", "coordinate", "value"), OUTSIDE.values(), ids=OUTSIDE.keys())
def test_one_part_outside_is_outside(name, coordinate, value):
    constraint, _, _, inside = build(name, (3,))
    outside = np.array(inside)
    outside[1, coordinate] = value
    np.testing.assert_array_equal(compiled(constraint)(outside), [True, False, True])


def test_numpy_is_checked_in_double_precision():
    constraint = joint([constraints.real, constraints.less_than(1.0)], ((), ()))
    # Single precision would round the last coordinate to the bound.
    assert bool(np.asarray(constraint(np.array([[0.0, 1.0 - 1e-12]])))[0])


def test_one_numpy_vector_is_checked_as_many_are():
    constraint = joint([constraints.real, constraints.positive], ((), (2,)))
    assert bool(constraint(np.array([-1.0, 1.0, 1.0])))
    assert not bool(constraint(np.array([-1.0, 1.0, -1.0])))


@every
def test_a_feasible_vector_is_on_the_support(name):
    constraint, _, _, value = build(name, (2,))
    feasible = compiled(constraint.feasible_like)(jnp.zeros_like(value))
    assert feasible.shape == value.shape
    assert np.all(compiled(constraint)(feasible))


@every
def test_round_trip_through_the_pytree(name):
    constraint, transform, vector, value = build(name)
    for each in (constraint, transform):
        leaves, structure = jax.tree.flatten(each)
        assert jax.tree.unflatten(structure, leaves) == each
        hash(structure)
    returned, moved = jax.jit(lambda c, t, x: (c, t(x)))(constraint, transform, vector)
    assert returned.eq(constraint)
    np.testing.assert_allclose(moved, value, rtol=8.0 * EPS32, atol=EPS32)  # bounds are no longer constants to XLA


@every
def test_equality(name):
    parts, shapes, _ = CASES[name]
    constraint = joint(parts, shapes)
    for make in (joint, lambda *args: biject_to(joint(*args))):
        assert make(parts, shapes) == make(list(parts), list(shapes))
        assert make(parts, shapes) != make((*parts, constraints.real), (*shapes, ()))
        assert make(parts, shapes) != make((*parts[:-1], constraints.real), shapes)
    assert constraint != constraints.real_vector
    assert biject_to(constraint) != biject_to(constraints.real_vector)


def test_bounds_are_compared_by_value():
    def interval(high):
        return joint([constraints.real, constraints.interval(0.0, high)], ((), (2,)))

    assert interval(1.0) == interval(1.0)
    assert interval(1.0) != interval(2.0)
    same = jax.jit(lambda a, b: a.eq(b))
    assert same(interval(1.0), interval(1.0))
    assert not same(interval(1.0), interval(2.0))


def test_shapes_are_compared():
    assert joint([constraints.real] * 2, ((2,), (1,))) != joint([constraints.real] * 2, ((1,), (2,)))


REFUSED = {
    "a circle": (constraints.circular, ValueError, r"two endpoints; got Circular"),
    "circles": (constraints.independent(constraints.circular, 1), ValueError, "two endpoints"),
    "unknown": (constraints.dependent, ValueError, "numpyro has none for Dependent"),
    "booleans": (constraints.boolean, ValueError, "continuous `support`; got Boolean"),
    "integers": (constraints.integer_interval(0, 3), ValueError, "continuous `support`; got IntegerInterval"),
    "integer vectors": (constraints.independent(constraints.positive_integer, 1), ValueError, "continuous `support`"),
    "a sphere": (constraints.sphere, ValueError, "bijection from the real line; numpyro has none for Sphere"),
    "spheres": (constraints.independent(constraints.sphere, 1), ValueError, "numpyro has none for"),
    "a name": ("positive", TypeError, "constraint of numpyro; got 'positive'"),
    "a class": (constraints.interval, TypeError, "constraint of numpyro; got type"),
    "a distribution": (dist.Gamma(1.0), TypeError, "constraint of numpyro; got Gamma"),
    "None": (None, TypeError, "constraint of numpyro; got NoneType"),
}


@pytest.mark.parametrize(("support", "error", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_supports_without_a_smooth_map_are_refused(support, error, says):
    with pytest.raises(error, match=rf"somebody expected .*{says}.*Fix: "):
        check_support("somebody", "support", support)


@every
def test_numpyros_own_are_kept(name):
    for part in CASES[name][0]:
        assert check_support("somebody", "support", part) is part
