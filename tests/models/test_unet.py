"""The convolutional network, and a head that reads it place by place."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import flowdensity as fd
from flowdensity.divergence.stein import DivergenceHead
from flowdensity.models.unet import convolution, convolve

SHAPE = (4, 8, 2)
DIM = 64


def random_unet(context_dim: int = 0, width: int = 8) -> fd.networks.UNet:
    """With weights in its last layer, which an untrained network does not have."""
    network = fd.networks.UNet(jr.key(0), SHAPE, context_dim, width=width, scales=3)
    last = 0.3 * jr.normal(jr.key(1), network.outward.weight.shape)
    return eqx.tree_at(lambda n: n.outward.weight, network, last)


@pytest.mark.slow
def test_an_untrained_network_is_the_zero_field():
    network = eqx.filter_jit(fd.networks.UNet(jr.key(0), SHAPE, width=8))
    output, hidden = network(jnp.asarray(0.3), jr.normal(jr.key(2), (DIM,)), jnp.zeros(0))
    np.testing.assert_array_equal(output, np.zeros(DIM))
    assert hidden.shape == (32, 8)


@pytest.mark.slow
def test_output_and_features_are_at_their_places():
    """The far corner sees a change at the near one only through the coarse scales, and each place first of all itself."""
    network = random_unet()
    state = jr.normal(jr.key(3), (DIM,))
    slope = jax.jit(jax.jacfwd(lambda y: network(jnp.asarray(0.5), y, jnp.zeros(0))[0]))(state)
    sizes = np.linalg.norm(np.asarray(slope).reshape(4, 8, 2, 4, 8, 2), axis=(2, 5)).reshape(32, 32)
    assert np.median(np.diag(sizes)) > 2.0 * max(sizes[0, -1], sizes[-1, 0]) > 0.0

    # Hidden features are read out by a 3x3 convolution: the output at a place does not change with those two columns away.
    def output(hidden):
        return convolve(network.outward, hidden.reshape(4, 8, -1))

    whole, hidden = eqx.filter_jit(network)(jnp.asarray(0.5), state, jnp.zeros(0))
    np.testing.assert_allclose(output(hidden).ravel(), whole, atol=1e-6)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_is_that_of_its_layer(stride):
    """Outside of a loop, that is: within one, equinox's own takes ten times as long on a CPU."""
    layer = convolution(jr.key(0), 3, 5, stride=stride)
    layer = eqx.tree_at(lambda c: c.bias, layer, jr.normal(jr.key(1), (5, 1, 1)))
    image = jr.normal(jr.key(2), (3, 6, 8))
    np.testing.assert_allclose(
        convolve(layer, jnp.moveaxis(image, 0, -1)), jnp.moveaxis(layer(image), 0, -1), atol=1e-5
    )


@pytest.mark.slow
def test_angle_and_context_are_seen():
    network = eqx.filter_jit(random_unet(context_dim=2))
    state = jr.normal(jr.key(3), (DIM,))
    here = network(jnp.asarray(0.5), state, jnp.zeros(2))[0]
    assert np.abs(here - network(jnp.asarray(0.9), state, jnp.zeros(2))[0]).max() > 1e-3
    assert np.abs(here - network(jnp.asarray(0.5), state, jnp.ones(2))[0]).max() > 1e-3


@pytest.mark.parametrize("shape", [(6, 8, 1), (8, 8), (64,)], ids=str)
def test_what_is_no_image_is_refused(shape):
    with pytest.raises(ValueError, match=r"UNet expected `event_shape` as .*Fix:"):
        fd.networks.UNet(jr.key(0), shape)


def test_a_head_reads_each_place_and_adds_up():
    head = DivergenceHead(
        jr.key(4),
        DIM,
        (32, 8),
        span=jnp.array([0.0, 0.5 * jnp.pi]),
        reach=jnp.asarray(jnp.inf),
        scale=jnp.ones(()),
        bound=jnp.asarray(1e6),
        width=8,
    )
    head = eqx.tree_at(lambda h: h.network.outward, head, eqx.nn.Linear(8, "scalar", key=jr.key(5)))
    state, hidden = jr.normal(jr.key(6), (DIM,)), jr.normal(jr.key(7), (32, 8))
    time = jnp.asarray(0.4)
    whole = head(time, state, hidden)
    # Whatever the order of the places: it is a sum.
    order = np.random.default_rng(0).permutation(32)
    shuffled = head(time, state.reshape(32, 2)[order].ravel(), hidden[order])
    np.testing.assert_allclose(shuffled, whole, rtol=1e-5)

    # And one place of which all is changed moves it by its own share only, the same whatever is elsewhere.
    def change(hidden):
        return head(time, state, hidden.at[3].add(1.0)) - head(time, state, hidden)

    np.testing.assert_allclose(change(hidden), change(hidden.at[10:].multiply(-2.0)), rtol=1e-3)


@pytest.mark.slow
def test_an_image_is_fitted_and_distilled():
    """Events keep their shape, the head has a place for each pixel, and a network of another size is refused."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2000, 4, 4, 1)) + rng.normal(size=(2000, 1, 1, 1))
    network = fd.networks.UNet(jr.key(0), (4, 4, 1), width=4, scales=2)
    density, _ = fd.fit_flow(
        jr.key(1), images, network=network, training=fd.Training(steps=20, batch_size=32), progress=False
    )
    assert density.event_shape == (4, 4, 1)
    assert density.divergence.head.places == 16
    assert np.isfinite(density.log_prob(np.float32(images[:3]))).all()


@pytest.mark.slow
def test_a_network_for_another_size_is_refused():
    with pytest.raises(ValueError, match="expected a `network` for 16 dimensions"):
        fd.fit_flow(
            jr.key(1), np.random.default_rng(0).normal(size=(9, 4, 4, 1)), network=fd.networks.UNet(jr.key(0), SHAPE)
        )
