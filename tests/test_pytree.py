"""Splitting a module into arrays and a hashable rest."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from references import conditional_gaussian_flow, random_flow

import flowdensity as fd
from flowdensity._pytree import merge, split


class Odd(eqx.Module):
    """Leaves of every kind that a module may hold."""

    array: jax.Array
    number: float
    name: str
    nothing: None
    numpy: np.ndarray
    items: list
    function: object
    static: tuple = eqx.field(static=True)


ODD = Odd(jnp.arange(3.0), 0.5, "name", None, np.arange(2.0), [jnp.ones(1), 3], jax.nn.silu, (1, "a"))

TREES = {
    "a network": fd.networks.ResidualMLP(jr.key(0), 2, width=4),
    "a flow": random_flow(jr.key(0), 2, 1),
    "a closed form": conditional_gaussian_flow(),
    "with a key": fd.HutchinsonDivergence(jr.key(0), 3),
    "without arrays": fd.ExactDivergence(),
    "a solver": fd.solvers.Adaptive(),
    "everything": ODD,
    "a tuple": (random_flow(jr.key(0), 2), fd.ExactDivergence(), fd.FixedStep()),
}


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES.keys())
def test_merge_undoes_split(tree):
    arrays, rest = split(tree)
    assert all(array is None or eqx.is_array(array) for array in arrays)
    again = merge(arrays, rest)
    assert jax.tree.structure(again) == jax.tree.structure(tree)
    for ours, theirs in zip(jax.tree.leaves(again), jax.tree.leaves(tree), strict=True):
        assert ours is theirs


HASHABLE = {name: tree for name, tree in TREES.items() if name != "everything"}


@pytest.mark.parametrize("tree", HASHABLE.values(), ids=HASHABLE.keys())
def test_the_rest_hashes_and_compares_by_value(tree):
    _, rest = split(tree)
    _, again = split(jax.tree.map(lambda leaf: leaf, tree))
    assert rest == again
    assert hash(rest) == hash(again)


def test_different_modules_have_a_different_rest():
    rests = {split(tree)[1] for tree in HASHABLE.values()}
    assert len(rests) == len(HASHABLE)


def test_merged_arrays_may_be_traced():
    arrays, rest = split(random_flow(jr.key(0), 2))
    state = jnp.array([0.1, 0.2])

    def velocity(arrays):
        return merge(arrays, rest).velocity(jnp.asarray(0.5), state, jnp.zeros(0))

    np.testing.assert_allclose(jax.jit(velocity)(arrays), velocity(arrays), rtol=1e-5)


def test_the_wrong_number_of_arrays_is_noticed():
    arrays, rest = split(random_flow(jr.key(0), 2))
    with pytest.raises(ValueError, match="zip"):
        merge(arrays[:-1], rest)
