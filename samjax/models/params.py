"""The nested dict of a model's arrays: dotted names for its leaves, and how two of them differ.

`params` is `nnx.to_pure_dict(nnx.split(model)[1])`: strings for attributes, ints for the entries of
a list. The dotted name of `params["image_encoder"]["blocks"][0]["norm1"]["scale"]` is
`image_encoder.blocks.0.norm1.scale`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Params = dict[Any, Any]


def flatten(params: Params) -> dict[str, Any]:
    """Leaves by dotted name, in the order of the dict. A leaf is whatever is not a dict."""
    leaves: dict[str, Any] = {}
    for key, value in params.items():
        if isinstance(value, dict):
            leaves |= {f"{key}.{name}": leaf for name, leaf in flatten(value).items()}
        else:
            leaves[str(key)] = value
    return leaves


def unflatten(leaves: Mapping[str, Any]) -> Params:
    """The inverse of `flatten`: parts of a name that are numbers become ints."""
    params: dict[Any, Any] = {}
    for name, leaf in leaves.items():
        *parents, last = [int(part) if part.isdecimal() else part for part in name.split(".")]
        node = params
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = leaf
    return params


def differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> dict[str, list[str]]:
    """What is missing, unexpected or of another shape, as lines for `describe`.

    Both map dotted names to anything with a `shape`.
    """
    return {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "of the wrong shape": [
            f"{name}: {tuple(found[name].shape)}, expected {tuple(leaf.shape)}"
            for name, leaf in expected.items()
            if name in found and tuple(found[name].shape) != tuple(leaf.shape)
        ],
    }


def describe(groups: Mapping[str, Sequence[str]], *, limit: int = 12) -> str:
    """Every group that is not empty: its size, its name, and its first `limit` lines."""
    lines = []
    for title, entries in groups.items():
        if entries:
            lines.append(f"{len(entries)} {title}:")
            lines += [f"  {entry}" for entry in entries[:limit]]
            if len(entries) > limit:
                lines.append(f"  ... and {len(entries) - limit} more")
    return "\n".join(lines)


def fingerprint(leaves: Mapping[str, Any]) -> str:
    """SHA-256 over names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(leaves):
        array = np.asarray(leaves[name])
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    return digest.hexdigest()
