"""Weight files to models: found by the names that the model has, and checked tensor by tensor.

    read_weights(path)                file -> its tensors by their paths
    load_model(path, config, ...)     file -> DAT with those weights, at any size that the configuration can take

Files may be what the training code saved (weights beside an optimizer, averages, a configuration), a bare state dict,
a pickled module, NumPy arrays or safetensors; wrappers may have put anything before the names. Nothing in a file is
executed (`models.weight_files`). Of several sets of weights that fit, one is taken by a rule or asked for, never by
chance (`_chosen`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from models.config import DATConfig
from models.dat import DAT
from models.misfit import Mismatch, Shapes, compare, describe, is_table, model_name, native_shapes
from models.pickled import Foreign
from models.weight_files import CheckpointError, listed, read_weight_file
from models.weight_search import Entry, WeightSet, are_equal, as_tensor, entries_of, find_sets, is_tensor, under_key

__all__ = ["CheckpointError", "fit_weights", "load_model", "read_weights"]

HEAD = "cls_head.weight"


def read_weights(path: Path) -> dict[str, Any]:
    """Return the tensors and arrays of a weight file by their paths in it, such as `state_dict.module.cls_head.bias`.

    Raises CheckpointError if the file cannot be read, holds programs beside data, or holds no tensors.
    """
    return {entry.path: entry.value for entry in _entries(path)}


def _entries(path: Path) -> list[Entry]:
    content = read_weight_file(path)
    if not isinstance(content, (dict, Foreign)):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a dictionary of weights")
    entries = [entry for entry in entries_of(content) if not isinstance(entry.value, Foreign) or is_tensor(entry.value)]
    if not entries:
        keys = content if isinstance(content, dict) else content.entries
        raise CheckpointError(f"{path} holds no weights; its entries are: {listed([str(key) for key in keys])}")
    return entries


def load_model(
    path: Path,
    config: DATConfig,
    *,
    image_size: tuple[int, int] | None,
    window: int | None = None,
    weights_key: str | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> DAT:
    """Return the model of a weight file, in evaluation mode.

    Args:
        path: the weight file.
        config: the configuration that the weights belong to; the class count is taken from the file.
        image_size: height and width of the input, or None for any. First-generation position tables are
            interpolated where this is not the size that they were trained for.
        window: another window for another size, as in `DATConfig.at_size`.
        weights_key: where the weights lie in the file, such as `state_dict_ema`; left out, wherever they fit.
        note: called with a sentence about a choice that was made among several sets of weights.

    Raises:
        CheckpointError: the file cannot be read, or holds no weights that fit, or several; see `fit_weights`.
        SizeError: the configuration cannot take `image_size`.
    """
    sized = config if image_size is None else config.at_size(image_size, window)
    with torch.device("meta"):
        shapes: Shapes = {name: value.shape for name, value in DAT(sized, image_size).state_dict().items()}
    native = native_shapes(config) if image_size is not None else {}
    name = model_name(config, image_size)
    found = _chosen(_entries(path), shapes, native, config, name=name, source=str(path), key=weights_key, note=note)
    head = found.weights.get(HEAD)
    if head is not None and len(_shape_of(head)) == 2:
        sized, config = (replace(each, num_classes=_shape_of(head)[0]) for each in (sized, config))
    model = DAT(sized, image_size)
    model.load_state_dict(fit_weights(found.weights, model, trained=config, source=str(path)))
    return model.eval()


def _chosen(
    entries: Sequence[Entry],
    shapes: Shapes,
    native: Shapes,
    config: DATConfig,
    *,
    name: str,
    source: str,
    key: str | None,
    note: Callable[[str], None],
) -> WeightSet:
    """Return the set of weights that fits.

    Sets with the same numbers are one. Weights come before moving averages of them, which are told by their prefix
    and can be asked for by `key`; between others nothing but `key` decides.
    """
    sets = find_sets(entries, shapes.keys())
    if key is not None:
        sets, all_sets = under_key(sets, key), sets
        if not sets:
            keys = listed([repr(each.key) for each in all_sets])
            raise CheckpointError(f"{source} has no weights of {name} under {key!r}; there are some under: {keys}")
    fitting = [each for each in sets if not compare(each, shapes, native)]
    if not fitting:
        best = max(sets, key=lambda each: _matches(compare(each, shapes, native), each), default=None)
        raise CheckpointError(f"{source} {describe(entries, best, shapes, native, config, name)}")
    distinct: list[WeightSet] = []
    for each in sorted(fitting, key=lambda each: (each.is_averaged, len(each.prefix))):
        if not any(are_equal(each.weights, other.weights) for other in distinct):
            distinct.append(each)
    plain = [each for each in distinct if not each.is_averaged]
    first = distinct[0]
    if len(plain) > 1 or (not plain and len(distinct) > 1):
        keys = ", ".join(repr(each.key) for each in distinct)
        raise CheckpointError(f"{source} holds different weights that fit, under {keys}: choose with --weights-key")
    if len(distinct) > 1:
        others = ", ".join(repr(each.key) for each in distinct[1:])
        note(
            f"taking the weights under {first.key!r}; the averages of them under {others} can be had with --weights-key"
        )
    elif first.is_averaged and key is None:
        note(f"taking the averaged weights under {first.key!r}; there are no others")
    return first


def _matches(mismatch: Mismatch, found: WeightSet) -> int:
    return len(found.weights) - len(mismatch.misshapen)


def fit_weights(weights: Mapping[str, Any], model: DAT, *, trained: DATConfig, source: str) -> dict[str, Tensor]:
    """Return the state dict that `model` loads, float32, with position tables brought to its size.

    A table may have the model's shape, or the shape that it has at the size of the `trained` configuration.
    Raises CheckpointError that says how the tensors do not fit, which of them are no floating-point numbers, or which
    hold NaN or infinite values.
    """
    expected = model.state_dict()
    shapes: Shapes = {name: value.shape for name, value in expected.items()}
    native = native_shapes(trained) if model.image_size is not None else {}
    found = WeightSet(
        "",
        {name: value for name, value in weights.items() if name in shapes},
        {name: value for name, value in weights.items() if name not in shapes},
    )
    if compare(found, shapes, native):
        raise CheckpointError(
            f"{source} {describe([], found, shapes, native, trained, model_name(trained, model.image_size))}"
        )
    fitted = {name: _fitted(name, weights[name], shapes[name]) for name in expected}
    faults = [fault for name, value in fitted.items() if (fault := _fault(name, weights[name], value)) is not None]
    if faults:
        raise CheckpointError(f"{source} cannot be used; of its tensors {len(faults)} are not finite: {listed(faults)}")
    return fitted


def _fitted(name: str, value: Any, shape: torch.Size) -> Tensor:
    tensor = as_tensor(value).to(torch.float32)
    return _resize_table(tensor, shape) if tensor.shape != shape and is_table(name) else tensor


def _fault(name: str, given: Any, value: Tensor) -> str | None:
    """Return what is not finite in a tensor, None where nothing is."""
    if value.isfinite().all():
        return None
    if as_tensor(given).isfinite().all():
        return f"{name} (beyond the range of float32)"
    kinds = [kind for kind, holds in (("NaN", value.isnan().any()), ("infinity", value.isinf().any())) if holds]
    return f"{name} ({' and '.join(kinds)})"


def _resize_table(table: Tensor, shape: torch.Size) -> Tensor:
    """Interpolate a table of displacements bicubically, as the published fine-tuning does.

    `relative_position_bias_table` is ((2w - 1)^2, heads), `rpe_table` (heads, 2H - 1, 2W - 1).
    """
    if table.ndim == 3:
        return F.interpolate(table[None], shape[1:], mode="bicubic", align_corners=False)[0]
    side, new_side = math.isqrt(table.shape[0]), math.isqrt(shape[0])
    square = table.T.reshape(1, -1, side, side)
    return F.interpolate(square, (new_side, new_side), mode="bicubic", align_corners=False)[0].flatten(1).T


def _shape_of(value: Any) -> tuple[int, ...]:
    try:
        return tuple(as_tensor(value).shape)
    except TypeError:
        return ()
