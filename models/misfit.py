"""Why weights do not fit a model: the likely cause first, then a few of the tensors at fault.

    compare(found, shapes, native)     -> what is missing, what is too much, what has another shape or kind
    describe(entries, found, ...)      -> a sentence for the user

The cause is found by trying the published variants on the same file, and by what differs in depth, width and size.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Final, TypeAlias

import torch

from models.config import STAGES, DATConfig
from models.dat import DAT
from models.variants import VARIANTS, Variant
from models.weight_files import listed
from models.weight_search import Entry, WeightSet, as_tensor, find_sets

Shapes: TypeAlias = Mapping[str, torch.Size]

DERIVED_BUFFERS: Final = {"relative_position_index", "attn_mask"}
"""Buffers of published files that follow from the size, and may be missing or belong to another size."""
_TABLES: Final = ("relative_position_bias_table", "rpe_table")
_HEAD: Final = ("cls_head.weight", "cls_head.bias")


@dataclass(frozen=True, slots=True)
class Mismatch:
    """How a set of weights differs from what a model wants; true where it does at all."""

    missing: list[str]
    extra: list[str]
    misshapen: list[str]
    """Names of those whose shape is another; `shapes` has both."""
    unusable: list[str]
    """Those that are no floating-point tensors, with what they are."""
    shapes: dict[str, str]

    def __bool__(self) -> bool:
        return bool(self.missing or self.extra or self.misshapen or self.unusable)

    def counted(self) -> str:
        """Return the numbers of tensors at fault, with the first of each."""
        kinds = (
            ("missing", self.missing),
            ("extra", self.extra),
            ("of a wrong shape", [f"{name} {self.shapes[name]}" for name in self.misshapen]),
            ("that cannot be used", self.unusable),
        )
        return "; ".join(f"{len(names)} {kind}: {listed(names)}" for kind, names in kinds if names)


def compare(found: WeightSet, shapes: Shapes, native: Shapes) -> Mismatch:
    """Compare weights with the shapes that a model has; tables may have those of the size they were trained for.

    The head may have any number of classes.
    """
    misshapen, unusable, texts = [], [], {}
    classes = _classes(found)
    for name, value in found.weights.items():
        try:
            tensor = as_tensor(value)
        except TypeError as error:
            unusable.append(f"{name} ({error})")
            continue
        wanted = shapes[name]
        if name in _HEAD and classes is not None:
            wanted = torch.Size((classes, *wanted[1:]))
        if not tensor.is_floating_point():
            unusable.append(f"{name} ({str(tensor.dtype).removeprefix('torch.')} numbers, not floating-point ones)")
        elif tensor.shape != wanted and not (is_table(name) and tensor.shape == native.get(name)):
            misshapen.append(name)
            texts[name] = f"{_shape(tensor.shape)} instead of {_shape(wanted)}"
    return Mismatch(
        missing=[name for name in shapes if name not in found.weights],
        extra=[name for name in found.beside if name.rsplit(".", 1)[-1] not in DERIVED_BUFFERS],
        misshapen=misshapen,
        unusable=unusable,
        shapes=texts,
    )


def _classes(found: WeightSet) -> int | None:
    try:
        shape = as_tensor(found.weights[_HEAD[0]]).shape
    except (KeyError, TypeError):
        return None
    return shape[0] if len(shape) == 2 and shape[0] else None


def describe(
    entries: Sequence[Entry], found: WeightSet | None, shapes: Shapes, native: Shapes, config: DATConfig, name: str
) -> str:
    """Return why no weights in a file fit the model `name`; `found` is the best set, if there is any."""
    if found is None:
        return f"has no tensor name in common with a DAT, so it is another network's; it holds: {_paths(entries)}"
    mismatch = compare(found, shapes, native)
    cause = _cause(entries or _entries_of(found), found, mismatch, config)
    under = f" under {found.key!r}" if found.key else ""
    return f"does not fit {name}: {cause}; of its tensors{under} {mismatch.counted()}"


def _paths(entries: Sequence[Entry]) -> str:
    return listed([entry.path for entry in entries])


def _entries_of(found: WeightSet) -> list[Entry]:
    return [Entry(name, 0, value) for name, value in (found.weights | found.beside).items()]


def _cause(entries: Sequence[Entry], found: WeightSet, mismatch: Mismatch, config: DATConfig) -> str:
    """Return the likely cause in words."""
    if mismatch.unusable and not (mismatch.missing or mismatch.extra or mismatch.misshapen):
        return "quantised or otherwise packed weights, where floating-point ones are wanted"
    headless = not any(name.startswith("cls_head.") for name in found.weights)
    of_backbone = "a detection or segmentation backbone, which has no classification head"
    other = _fitting_variant(entries)
    if other is not None and not _is_of(config, other):
        return f"these are weights of {other.name}" + (f", as {of_backbone}" if headless else "; export that variant")
    if headless:
        return of_backbone if any(_is_dense_norm(name) for name in mismatch.extra) else "it has no classification head"
    differences = [*_depths(found, mismatch, config), *_width(found, config)]
    if differences:
        return ", ".join(differences) + f", unlike any published variant{_generation_note(entries, config)}"
    if mismatch.misshapen and not mismatch.missing and not mismatch.extra and all(map(is_table, mismatch.misshapen)):
        return _trained_size(found, config)
    if note := _generation_note(entries, config):
        return f"another network{note}"
    if mismatch.missing and not mismatch.extra and not mismatch.misshapen:
        return "it is incomplete"
    if mismatch.extra and not mismatch.missing and not mismatch.misshapen:
        return "it has tensors that are none of this network's"
    return "it is of another or an altered network"


def _is_dense_norm(name: str) -> bool:
    return name.startswith("norms.")


def _fitting_variant(entries: Sequence[Entry]) -> Variant | None:
    """Return the published variant whose names and shapes a file has, but for head and size of the tables."""
    fitting = []
    for name, variant in VARIANTS.items():
        shapes = {key: shape for key, shape in native_shapes(variant.config).items() if not key.startswith("cls_")}
        for found in find_sets(entries, shapes.keys())[:1]:
            mismatch = compare(found, shapes, shapes)
            extra = [each for each in mismatch.extra if not each.startswith("cls_") and not _is_dense_norm(each)]
            if not mismatch.missing and not extra and all(map(is_table, mismatch.misshapen)):
                fitting.append((len(mismatch.misshapen), name))
    return VARIANTS[min(fitting)[1]] if fitting else None


def _generation_note(entries: Sequence[Entry], config: DATConfig) -> str:
    """Return a remark where the file has more in common with a variant of the other generation."""
    most, closest = 0, None
    for variant in VARIANTS.values():
        shapes = native_shapes(variant.config)
        for found in find_sets(entries, shapes.keys())[:1]:
            matching = len(found.weights) - len(compare(found, shapes, shapes).misshapen)
            if matching > most:
                most, closest = matching, variant
    if closest is None or closest.config.generation == config.generation:
        return ""
    return f", closest to {closest.name} of generation {closest.config.generation}, not {config.generation}"


def _depths(found: WeightSet, mismatch: Mismatch, config: DATConfig) -> list[str]:
    """Return the stages that have another number of blocks than the model's."""
    blocks = [set[int]() for _ in range(STAGES)]
    for name in (*found.weights, *mismatch.extra):
        match = re.match(r"stages\.([0-3])\.(?:attns|mlps)\.(\d+)\.", name)
        if match:
            blocks[int(match[1])].add(int(match[2]))
    return [
        f"its stage {index + 1} has {len(blocks[index])} blocks, not {len(stage.layers)}"
        for index, stage in enumerate(config.stages)
        if blocks[index] and len(blocks[index]) != len(stage.layers)
    ]


def _width(found: WeightSet, config: DATConfig) -> list[str]:
    """Return how many channels the first stage has, where they are others than the model's."""
    norm = found.weights.get("stages.0.layer_norms.0.norm.weight")
    channels = None if norm is None else as_tensor(norm).numel()
    wanted = config.stages[0].dim
    return [] if channels in (None, wanted) else [f"its first stage has {channels} channels, not {wanted}"]


def _trained_size(found: WeightSet, config: DATConfig) -> str:
    """Return for which size of image the position tables of a first-generation model were made."""
    hints = []
    for name, value in found.weights.items():
        match = re.match(r"stages\.([0-3])\.", name)
        shape = as_tensor(value).shape
        if match and name.endswith(".rpe_table") and len(shape) == 3 and config.generation == 1:
            height, width = ((side + 1) // 2 * 4 * 2 ** int(match[1]) for side in shape[1:])
            hints.append(f"--image-size {height}" if height == width else f"--image-size {height}x{width}")
        if name.endswith(".relative_position_bias_table") and len(shape) == 2:
            hints.append(f"--window-size {(math.isqrt(shape[0]) + 1) // 2}")
    told = " ".join(dict.fromkeys(sorted(hints)))
    return (
        f"its position tables are of another input size; {told} would be theirs"
        if told
        else ("its position tables are of another input size")
    )


def is_table(name: str) -> bool:
    """Tell whether a tensor is a table of positions, which depends on the size of the input."""
    return name.rsplit(".", 1)[-1] in _TABLES


@cache
def native_shapes(config: DATConfig) -> Shapes:
    """Return the shapes of a model's tensors at the size that its tables were made for."""
    with torch.device("meta"):
        model = DAT(config, (config.img_size, config.img_size))
    return {name: value.shape for name, value in model.state_dict().items()}


def model_name(config: DATConfig, image_size: tuple[int, int] | None = None) -> str:
    """Return the variant that a configuration is of, that of the size where several are, or else a description."""
    variants = [variant for variant in VARIANTS.values() if _is_of(config, variant)]
    for variant in variants:
        if image_size == (variant.input_size, variant.input_size):
            return variant.name
    return variants[0].name if variants else f"this model of generation {config.generation}"


def _is_of(config: DATConfig, variant: Variant) -> bool:
    return replace(config, num_classes=variant.config.num_classes) == variant.config


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"
