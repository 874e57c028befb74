"""Orthonormal rows without LAPACK.

jaxlib runs a batch of LAPACK decompositions on the threads that also run the rest of the program, and each decomposition waits
there for its parts. On a CPU, as many simultaneous decompositions as there are threads deadlock, and a training step has three.
"""

import jax
import jax.numpy as jnp

from .._typing import Array, Rows


def gram_schmidt(vectors: Rows) -> Rows:
    """Orthonormal basis of the span of at most `dim` vectors, row by row, shape `(count, dim)`.

    Each row has a positive inner product with its vector, so standard-normal vectors become uniformly distributed frames
    (Mezzadri 2007, arXiv math-ph/0609050). Each remainder is orthogonalized twice, which is enough in floating point (Giraud et
    al. 2005).
    """

    def add(basis: Rows, numbered: tuple[Array, Array]) -> tuple[Rows, None]:
        number, vector = numbered
        for _ in range(2):
            vector = vector - (basis @ vector) @ basis
        return basis.at[number].set(vector / jnp.linalg.norm(vector)), None

    return jax.lax.scan(add, jnp.zeros_like(vectors), (jnp.arange(len(vectors)), vectors))[0]
