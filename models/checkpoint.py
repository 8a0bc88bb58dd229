"""Published weight files to models: read without executing anything, checked tensor by tensor.

    read_weights(path)                file -> plain state dict under the published names
    load_model(path, config, ...)     file -> DAT with those weights, at any size that the configuration can take

Files may be what the training code saved (weights under `model`, beside optimizer, scheduler and a pickled yacs
configuration), a bare state dict, or safetensors; names may carry `module.` or `backbone.`. Only tensors, plain
containers and numbers are ever made from a pickle: any other callable in it is refused by torch's restricted
unpickler, and yacs' configuration becomes an inert dictionary.
"""

from __future__ import annotations

import math
import pickle
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional as F

from models.config import DATConfig
from models.dat import DAT

DERIVED_BUFFERS = {"relative_position_index", "attn_mask"}
"""Buffers of published files that follow from the size, and may be missing or belong to another size."""

_WRAPPERS = ("module.", "backbone.")
_CONTAINERS = ("model", "state_dict")


class CheckpointError(ValueError):
    """A weight file that cannot be read, or does not fit; the message names every tensor at fault."""


def _numpy_scalars() -> list[Any]:
    """The constructors that a pickled NumPy number needs; training code keeps accuracies as such."""
    dtypes = [type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")]
    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]
    return [(scalar, "numpy.core.multiarray.scalar"), scalar, np.dtype, *dtypes]


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a weight file under their published names.

    Raises CheckpointError if the file cannot be read, holds anything but data, or holds no weights.
    """
    try:
        content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    for container in _CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(container), Mapping):
            content = content[container]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a dictionary of weights")
    weights = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not weights:
        raise CheckpointError(f"{path} holds no weights; its entries are: {_listed(map(str, content))}")
    return _without_wrappers(weights)


def _read_safetensors(path: Path) -> Any:
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path} is not a safetensors file: {error}") from error


def _read_pickle(path: Path) -> Any:
    # torch fills the built-in dictionaries only, so yacs' configuration, a dictionary too, becomes one of those
    allowed = [(OrderedDict, "yacs.config.CfgNode"), *_numpy_scalars()]
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} was refused: {_refusal(str(error))}") from error
    except (EOFError, RuntimeError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        # torch reports a damaged archive by any of these
        raise CheckpointError(f"{path} is not a readable checkpoint: {error}") from error


def _refusal(message: str) -> str:
    """Return the sentence of the restricted unpickler's long message that says what it met."""
    sentences = [line.strip() for line in message.splitlines() if line.strip()]
    found = re.search(r"(Unsupported (?:global|class|operand)[^.]*\.[\w.]*|Trying to [^.]*\.[\w.]*)", message)
    return f"it holds more than data: {found[0]}" if found else f"it is not a plain checkpoint: {sentences[-1]}"


def _without_wrappers(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Strip what data parallelism and the dense-prediction code put before every name."""
    for wrapper in _WRAPPERS * 2:
        inner = {name[len(wrapper) :]: value for name, value in weights.items() if name.startswith(wrapper)}
        if inner and (wrapper == "backbone." or len(inner) == len(weights)):
            weights = inner
    return weights


def load_model(path: Path, config: DATConfig, *, image_size: tuple[int, int] | None, window: int | None = None) -> DAT:
    """Return the model of a weight file, in evaluation mode.

    Args:
        path: the weight file.
        config: the configuration that the weights belong to; the class count is taken from the file.
        image_size: height and width of the input, or None for any. First-generation position tables are
            interpolated where this is not the size that they were trained for.
        window: another window for another size, as in `DATConfig.at_size`.

    Raises:
        CheckpointError: see `read_weights` and `fit_weights`.
        SizeError: the configuration cannot take `image_size`.
    """
    weights = read_weights(path)
    head = weights.get("cls_head.weight")
    if head is not None and head.ndim == 2:
        config = replace(config, num_classes=head.shape[0])
    model = DAT(config if image_size is None else config.at_size(image_size, window), image_size)
    model.load_state_dict(fit_weights(weights, model, trained=config, source=str(path)))
    return model.eval()


@dataclass(frozen=True, slots=True)
class _Mismatch:
    missing: list[str]
    extra: list[str]
    misshapen: list[str]

    def __bool__(self) -> bool:
        return bool(self.missing or self.extra or self.misshapen)

    def describe(self, source: str, model: DAT) -> str:
        parts = [
            f"{len(names)} {kind}: {', '.join(names)}"
            for kind, names in (("missing", self.missing), ("extra", self.extra), ("of a wrong shape", self.misshapen))
            if names
        ]
        hint = ""
        if any(name.startswith("norms.") for name in self.extra):
            hint = " (a detection or segmentation backbone, which has no classification head)"
        generation = model.config.generation
        return f"{source} does not fit this model of generation {generation}{hint}; tensors " + "; ".join(parts)


def fit_weights(weights: Mapping[str, Tensor], model: DAT, *, trained: DATConfig, source: str) -> dict[str, Tensor]:
    """Return the state dict that `model` loads, float32, with position tables brought to its size.

    A table may have the model's shape, or the shape that it has at the size of the `trained` configuration.
    Raises CheckpointError that names all missing, extra and misshapen tensors at once.
    """
    expected = model.state_dict()
    native = _native_shapes(trained) if model.image_size is not None else {}
    fitted, misshapen = {}, []
    for name, target in expected.items():
        if name not in weights:
            continue
        value = weights[name].detach().to(torch.float32)
        if value.shape != target.shape and value.shape == native.get(name) and _is_table(name):
            value = _resize_table(value, target.shape)
        if value.shape != target.shape:
            misshapen.append(f"{name} {_shape(weights[name])} instead of {_shape(target)}")
        fitted[name] = value
    mismatch = _Mismatch(
        missing=[name for name in expected if name not in weights],
        extra=[name for name in weights if name not in expected and name.rsplit(".", 1)[-1] not in DERIVED_BUFFERS],
        misshapen=misshapen,
    )
    if mismatch:
        raise CheckpointError(mismatch.describe(source, model))
    return fitted


def _native_shapes(trained: DATConfig) -> dict[str, torch.Size]:
    with torch.device("meta"):
        model = DAT(trained, (trained.img_size, trained.img_size))
    return {name: value.shape for name, value in model.state_dict().items()}


def _is_table(name: str) -> bool:
    return name.rsplit(".", 1)[-1] in ("relative_position_bias_table", "rpe_table")


def _resize_table(table: Tensor, shape: torch.Size) -> Tensor:
    """Interpolate a table of displacements bicubically, as the published fine-tuning does.

    `relative_position_bias_table` is ((2w - 1)^2, heads), `rpe_table` (heads, 2H - 1, 2W - 1).
    """
    if table.ndim == 3:
        return F.interpolate(table[None], shape[1:], mode="bicubic", align_corners=False)[0]
    side, new_side = math.isqrt(table.shape[0]), math.isqrt(shape[0])
    square = table.T.reshape(1, -1, side, side)
    return F.interpolate(square, (new_side, new_side), mode="bicubic", align_corners=False)[0].flatten(1).T


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
