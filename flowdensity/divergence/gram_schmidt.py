"""Orthonormal rows without LAPACK.

jaxlib runs a batch of LAPACK decompositions on the threads that also run the rest of the program, and each of them waits there
for its parts: on a CPU as many of them at a time as there are threads wait for ever, and a training step has three.
"""

import jax
import jax.numpy as jnp

from .._typing import Array, Rows


def gram_schmidt(vectors: Rows) -> Rows:
    """An orthonormal basis, row by row, of the span of at most `dim` vectors, shape `(count, dim)`.

    Each row is at a positive angle to its vector, so that standard-normal vectors become uniformly distributed frames
    (Mezzadri 2007, arXiv math-ph/0609050). What is left of each is made orthogonal twice, which is enough in floating point
    (Giraud et al. 2005).
    """

    def add(basis: Rows, numbered: tuple[Array, Array]) -> tuple[Rows, None]:
        number, vector = numbered
        for _ in range(2):
            vector = vector - (basis @ vector) @ basis
        return basis.at[number].set(vector / jnp.linalg.norm(vector)), None

    return jax.lax.scan(add, jnp.zeros_like(vectors), (jnp.arange(len(vectors)), vectors))[0]
