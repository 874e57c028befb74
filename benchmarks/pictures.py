"""Real images in whole numbers: scikit-learn's digits, and patches of its two photographs."""

import jax
import jax.random as jr
import numpy as np
from sklearn.datasets import load_digits, load_sample_images

import flowdensity as fd

TRAINED_ON = 0.75
"""Patches to train on come from this share of a photograph's columns, those held out from the rest."""


def digits() -> tuple[np.ndarray, np.ndarray]:
    """1,500 training rows and 297 held out, events of shape `(8, 8, 1)`, 17 levels spread over (0, 1)."""
    images = np.random.default_rng(0).permutation(load_digits().images)[..., None]
    spread = _over_levels(jr.key(0), images, 17)
    return spread[:1500], spread[1500:]


def patches(size: int, count: int, held_out: int, *, grey: bool) -> tuple[np.ndarray, np.ndarray]:
    """Square patches of both photographs, events of shape `(size, size, channels)`, 256 levels spread over (0, 1)."""
    rng = np.random.default_rng(size)
    photographs = [np.mean(p, axis=2, keepdims=True).round() if grey else p for p in load_sample_images().images]

    def cut(number: int, first: float, last: float) -> np.ndarray:
        found = []
        for photograph in photographs:
            rows, columns, _ = photograph.shape
            top = rng.integers(0, rows - size + 1, number // 2)
            left = rng.integers(int(first * columns), int(last * columns) - size + 1, number // 2)
            found += [photograph[i : i + size, j : j + size] for i, j in zip(top, left, strict=True)]
        return rng.permutation(np.stack(found))

    train, test = cut(count, 0.0, TRAINED_ON), cut(held_out, TRAINED_ON, 1.0)
    return _over_levels(jr.key(1), train, 256), _over_levels(jr.key(2), test, 256)


def without_mean(images: np.ndarray) -> np.ndarray:
    """Patches less their mean, without the last pixel, which the others then determine: rows of one dimension less."""
    flat = images.reshape(len(images), -1)
    return (flat - flat.mean(1, keepdims=True))[:, :-1]


def _over_levels(key: jax.Array, images: np.ndarray, levels: int) -> np.ndarray:
    return (fd.dequantize(key, images) + 0.5) / levels
