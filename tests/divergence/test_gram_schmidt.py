"""Orthonormal rows, as LAPACK gives them and without it."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from references import random_flow, x64

import flowdensity as fd
from flowdensity.data.tables import Sample
from flowdensity.divergence.gram_schmidt import gram_schmidt
from flowdensity.training.divergence import centers_about_data


@pytest.mark.parametrize(("count", "dim"), [(1, 1), (1, 5), (3, 5), (8, 8)])
def test_it_is_the_qr_decomposition_with_a_positive_diagonal(count, dim):
    vectors = np.random.default_rng(0).normal(size=(count, dim))
    basis, triangle = np.linalg.qr(vectors.T)
    with x64():
        np.testing.assert_allclose(
            gram_schmidt(jnp.asarray(vectors)), (basis * np.sign(np.diag(triangle))).T, atol=1e-12
        )


def test_rows_are_orthonormal_where_the_vectors_are_nearly_one():
    """In float32, where of each vector but the first the seventh digit is left."""
    rng = np.random.default_rng(1)
    vectors = 1e4 * (rng.normal(size=6) + 1e-6 * rng.normal(size=(4, 6))).astype(np.float32)
    basis = np.asarray(gram_schmidt(jnp.asarray(vectors)), np.float64)
    np.testing.assert_allclose(basis @ basis.T, np.eye(4), atol=1e-6)


def test_kernels_and_hutch_plus_plus_leave_lapack_alone():
    """Several batches of its decompositions in one program can wait for each other's threads for ever."""
    model, rows = random_flow(jr.key(0), 3), Sample(jr.normal(jr.key(1), (50, 3)), jnp.zeros((50, 0)))
    centers = centers_about_data(jr.key(2), model, rows, 50)
    draw = jax.jit(lambda key: centers.draw(key, 64, rho=0.1, tails=0.15, directions=3))
    assert "lapack" not in draw.lower(jr.key(3)).as_text()
    density = fd.FlowDensity(model, divergence=fd.HutchPlusPlusDivergence(jr.key(4), 6))
    assert "lapack" not in jax.jit(density.log_prob).lower(jnp.zeros(3)).as_text()
    assert "lapack" in jax.jit(jnp.linalg.qr).lower(jnp.eye(3)).as_text()
