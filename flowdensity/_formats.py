"""The format of files, and what files of older ones said otherwise."""

from typing import Any

import numpy as np

from ._container import Tensors

FORMAT = 10
"""Of the files that are written; older ones are read."""
ADDED = {
    "Flow": {"start": 3, "context_reach": 5},
    "Diffusion": {"start": 3, "context_reach": 5},
    "EnergyNetwork": {"context_reach": 5, "experts": 6},
    "FitReport": {"start": 3, "columns": 9, "interrupted": 10},
    "Scaling": {"tails": 3, "edges": 7},
    "StartChoice": {"lead": 7},
    "History": {"gain": 4},
}
"""The format in which a type got a field: null in older ones, where there was no choice."""


def upgrade(tree: Any, number: int, tensors: Tensors) -> Any:
    """A description of format `number` as it would be written now.

    Args:
        tree: what `describe` has described, and JSON has read.
        number: format of its file.
        tensors: arrays by name; what is missing is added.

    Raises:
        Exception: of any kind, if the tree is not sound.
    """
    if number >= FORMAT:
        return tree
    if isinstance(tree, list):
        return [upgrade(item, number, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    tree = {key: upgrade(value, number, tensors) for key, value in tree.items()}
    if number < 2 and tree.get("type") == "ResidualMLP":
        tree = _with_experts(tree, tensors)
    missing = {field: None for field, first in ADDED.get(tree.get("type", ""), {}).items() if number < first}
    return tree | {"fields": tree["fields"] | missing} if missing else tree


def _with_experts(tree: dict[str, Any], tensors: Tensors) -> dict[str, Any]:
    """Format 1: a perceptron had no linear maps beside its last layer, so it has none of them."""
    fields = tree["fields"]
    last = fields["outward"]["fields"]
    (dim, width), inputs = tensors[last["weight"]["array"]].shape, fields["dim"] + fields["context_dim"]

    def empty(part: str, like: dict[str, Any], shape: tuple[int, ...]) -> dict[str, Any]:
        name = f"{last['weight']['array']}/{part}"
        tensors[name] = np.zeros(shape, tensors[like["array"]].dtype)
        return like | {"array": name}

    gate = {
        "weight": empty("gate/weight", last["weight"], (0, width)),
        "bias": empty("gate/bias", last["bias"], (0,)),
        "scalar": False,
    }
    experts = empty("experts", last["weight"], (0, dim, inputs))
    return tree | {"fields": fields | {"gate": {"type": "Linear", "fields": gate}, "experts": experts}}
