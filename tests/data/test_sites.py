"""Named values: one vector and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowdensity.data.sites import Sites, join, split

SHAPES = ((), (3,), (2, 2))
SITES = Sites(("mu", "w", "m"), SHAPES)


def values(**batch: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Distinct whole numbers for each site, behind batch axes of its own."""
    shapes = [(*batch.get(name, ()), *shape) for name, shape in zip(*SITES, strict=True)]
    starts = np.cumsum([0] + [int(np.prod(shape)) for shape in shapes])
    return {
        name: float(start) + np.arange(np.prod(shape)).reshape(shape)
        for name, shape, start in zip(SITES.names, shapes, starts[:-1], strict=True)
    }


# One vector --------------------------------------------------------------------------------------


def test_values_lie_behind_each_other_in_the_order_of_the_sites():
    shuffled = dict(reversed(values().items()))
    np.testing.assert_array_equal(SITES.pack("f", shuffled), np.arange(8.0))
    assert list(SITES.unpack(jnp.arange(8.0))) == ["mu", "w", "m"]


BATCHES = {
    "none": {},
    "the same": {"mu": (5,), "w": (5,), "m": (5,)},
    "one of them": {"w": (5,)},
    "of length one": {"mu": (4, 1), "w": (3,), "m": (4, 3)},
}


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES.keys())
def test_unpack_undoes_pack_up_to_broadcasting(batch):
    given = values(**batch)
    leading = np.broadcast_shapes(*batch.values())
    vector = SITES.pack("f", given)
    assert vector.shape == (*leading, 8)
    again = SITES.unpack(vector)
    for name, shape in zip(*SITES, strict=True):
        np.testing.assert_array_equal(again[name], np.broadcast_to(given[name], (*leading, *shape)))
    np.testing.assert_array_equal(SITES.pack("f", again), vector)


def test_whole_numbers_and_lists_become_real():
    vector = Sites(("n", "v"), ((), (2,))).pack("f", {"n": 3, "v": [1, 2]})
    assert jnp.issubdtype(vector.dtype, jnp.floating)
    np.testing.assert_array_equal(vector, [3.0, 1.0, 2.0])


def test_packing_is_traced_mapped_and_differentiated():
    given = values(mu=(5,), w=(5,), m=(5,))
    vectors = jax.jit(jax.vmap(lambda each: SITES.pack("f", each)))(given)
    np.testing.assert_array_equal(vectors, SITES.pack("f", given))
    slope = jax.grad(lambda each: SITES.pack("f", each)[4:6].sum())(values())
    np.testing.assert_array_equal(slope["m"], [[1.0, 1.0], [0.0, 0.0]])
    assert not np.any(slope["w"])


def test_numpy_stays_numpy_in_double_precision():
    vector = 1.0 + np.arange(16.0).reshape(2, 8) * 1e-12
    pieces = split(vector, SHAPES)
    assert [piece.shape for piece in pieces] == [(2,), (2, 3), (2, 2, 2)]
    for array in (*pieces, join(pieces, SHAPES)):
        assert isinstance(array, np.ndarray)
        assert array.dtype == np.float64
    np.testing.assert_array_equal(join(pieces, SHAPES), vector)


def test_sites_hash_and_compare():
    assert hash(SITES) == hash(Sites(("mu", "w", "m"), SHAPES))
    assert Sites(("mu", "w", "m"), ((), (3,), (4,))) != SITES
    assert Sites(("w", "mu", "m"), SHAPES) != SITES


REFUSED = {
    "missing": ({"mu": 0.0, "w": np.zeros(3)}, r"sites \['mu', 'w', 'm'\]; got \['mu', 'w'\]"),
    "too many": (values() | {"sigma": 1.0}, r"got \['m', 'mu', 'sigma', 'w'\]"),
    "none": ({}, "at least one named value; got an empty container"),
    "too few axes": (values() | {"w": 1.0}, r"'w' with shape \(3,\) after its batch axes; got \(\)"),
    "another length": (values() | {"w": np.zeros(4)}, r"'w' with shape \(3,\).*got \(4,\)"),
    "batch axes behind": (values() | {"m": np.zeros((2, 2, 5))}, r"'m' with shape \(2, 2\).*got \(2, 2, 5\)"),
    "batch axes that disagree": (values(mu=(5,), w=(4,)), r"broadcast.*'mu': \(5,\), 'w': \(4,\), 'm': \(\)"),
}


@pytest.mark.parametrize(("given", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_values_that_do_not_fit_are_refused(given, says):
    with pytest.raises(ValueError, match=rf"somebody expected .*{says}.* Fix: "):
        SITES.pack("somebody", given)


def test_an_empty_batch_is_packed():
    assert Sites(("a", "v"), ((), (2,))).pack("pack", {"a": np.zeros(0), "v": np.zeros((0, 2))}).shape == (0, 3)
