"""Radial squash that keeps networks and references bounded far from the data."""

import jax
import jax.numpy as jnp

from ._typing import Context, Scalar, State


def squash(state: State, reach: Scalar) -> tuple[State, Scalar]:
    r"""Pull a far state back to within `reach` of the origin, along its ray.

    $\sigma(y) = m\,y$ with $m = (1 + (|y|/R)^4)^{-1/4}$. It is smooth, bounded by $R$ everywhere, and within 1.6 % of the
    identity for $|y| < R/2$, with $|\partial\sigma| \le 1$.

    Args:
        state: whitened state, shape `(dim,)`.
        reach: $R$, the radius beyond which there are no data.

    Returns:
        The squashed state, shape `(dim,)`, and the factor $m \in (0, 1]$.
    """
    ratio = jnp.sum(jnp.square(state)) / jnp.square(reach)
    # Even at |y| = 1e6 R the square of the ratio does not overflow in float32.
    factor = jax.lax.rsqrt(jnp.sqrt(1.0 + jnp.square(ratio)))
    return factor * state, factor


def context_seen(context: Context, reach: Scalar | None) -> Context:
    """Whitened context as input of networks: pulled back to within `reach`, beyond which networks have learned nothing."""
    return context if reach is None else squash(context, reach)[0]
