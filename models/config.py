"""The configuration of a DAT: every switch that the published code of either generation reads.

Invariant: a `DATConfig` that exists is buildable. Letters, switches and numbers are checked when it is made, and
each error names the stage and the field. The two generations share names but not arithmetic; `generation` decides.

Sources: arXiv 2201.00520 (generation 1), arXiv 2309.01430 (generation 2), and their published configurations.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

STAGES = 4
LAYER_LETTERS = {
    "L": "window attention",
    "S": "shifted-window attention",
    "D": "deformable attention",
    "N": "neighbourhood attention",
}
OUTPUT_STRIDE = 32
"""Input pixels per pixel of the last stage."""
_SAMPLED_CELLS = 2
"""Least side of the maps and key grids that the second generation's deformable attention takes: its coordinates along
an axis are divided by one less than the axis's length."""

# Published names of the per-stage switches, and the field of `StageConfig` that each one sets.
_STAGE_FIELDS = {
    "dims": "dim",
    "stage_spec": "layers",
    "heads": "heads",
    "groups": "groups",
    "window_sizes": "window",
    "strides": "stride",
    "ksizes": "offset_kernel",
    "nat_ksizes": "neighborhood",
    "offset_range_factor": "offset_range_factor",
    "use_pes": "use_pe",
    "dwc_pes": "dwc_pe",
    "fixed_pes": "fixed_pe",
    "log_cpb": "log_cpb",
    "no_offs": "no_offsets",
    "use_dwc_mlps": "dwc_mlp",
    "use_lpus": "lpu",
    "layer_scale_values": "layer_scale",
}
_MODEL_FIELDS = {"img_size", "patch_size", "num_classes", "expansion", "dim_stem", "use_conv_patches"}
# Known to the published code, without effect on inference with the layers that are built here.
_WITHOUT_EFFECT = {
    "drop_rate",
    "attn_drop_rate",
    "drop_path_rate",
    "depths",
    "sr_ratios",
    "lower_lr_kvs",
    "ns_per_pts",
    "heads_q",
    "ksize_qnas",
    "nqs",
    "qna_activation",
}


class ConfigError(ValueError):
    """A configuration that no model can be built from; the message names the field."""


class SizeError(ValueError):
    """An input size that this configuration cannot take; the message names sizes that it can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageConfig:
    """One stage. Fields that its layers do not read may keep their defaults."""

    dim: int
    layers: tuple[str, ...]
    heads: int
    groups: int = -1
    window: int = 7
    stride: int = 1
    offset_kernel: int = 3
    neighborhood: int = 7
    offset_range_factor: float = -1
    use_pe: bool = False
    dwc_pe: bool = False
    fixed_pe: bool = False
    log_cpb: bool = False
    no_offsets: bool = False
    dwc_mlp: bool = False
    lpu: bool = False
    layer_scale: float = -1

    @property
    def head_dim(self) -> int:
        """Channels of one head."""
        return self.dim // self.heads

    def offset_padding(self, generation: int) -> int:
        """Return the padding of a deformable layer's offset convolution, on each side."""
        # the published second generation has a stride-sized kernel tile the map without overlap
        return 0 if generation == 2 and self.offset_kernel == self.stride else self.offset_kernel // 2

    def pools_keys(self, generation: int) -> bool:
        """Return whether a deformable layer's keys are means of the map's parts, and not sampled."""
        return self.no_offsets and generation == 2

    def key_window(self, generation: int) -> tuple[int, int]:
        """Return side and padding of the window that moves by `stride` over a deformable layer's map, a key a place."""
        if self.pools_keys(generation):
            return self.stride, 0
        return self.offset_kernel, self.offset_padding(generation)

    def key_side(self, cells: int, generation: int) -> int:
        """Return the side of a deformable layer's grid of keys for a map of so many cells on that side.

        Under torch.export `cells` may be symbolic.
        """
        window, padding = self.key_window(generation)
        return (cells + 2 * padding - window) // self.stride + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class DATConfig:
    """A whole model. `img_size` is the side of the square input that the position tables were made for."""

    generation: Literal[1, 2]
    stages: tuple[StageConfig, ...]
    dim_stem: int
    img_size: int = 224
    patch_size: int = 4
    num_classes: int = 1000
    expansion: int = 4
    use_conv_patches: bool = False

    def __post_init__(self) -> None:
        if self.generation not in (1, 2):
            raise ConfigError(f"generation must be 1 or 2, not {self.generation!r}")
        if len(self.stages) != STAGES:
            raise ConfigError(f"a DAT has {STAGES} stages, not {len(self.stages)}")
        if self.patch_size != 4:
            raise ConfigError(f"patch_size must be 4, not {self.patch_size}")
        if self.img_size <= 0 or self.img_size % OUTPUT_STRIDE:
            raise ConfigError(f"img_size must be a multiple of {OUTPUT_STRIDE}, not {self.img_size}")
        if self.num_classes < 1 or self.expansion < 1 or self.dim_stem < 1:
            raise ConfigError("num_classes, expansion and dim_stem must be positive")
        if self.use_conv_patches and self.generation == 1:
            raise ConfigError("use_conv_patches exists in generation 2 only")
        if self.use_conv_patches and self.dim_stem % 2:
            raise ConfigError(f"dim_stem must be even with use_conv_patches, not {self.dim_stem}")
        for index, stage in enumerate(self.stages):
            _check_stage(stage, index, self.generation)

    @classmethod
    def from_published(cls, published: Mapping[str, Any], *, generation: Literal[1, 2]) -> DATConfig:
        """Return the configuration that a published one (keys such as `stage_spec`, `use_pes`) stands for.

        Raises ConfigError for a key that the published code does not know, and for what cannot be built.
        """
        unknown = sorted(published.keys() - _STAGE_FIELDS.keys() - _MODEL_FIELDS - _WITHOUT_EFFECT)
        if unknown:
            raise ConfigError(f"unknown configuration switch: {', '.join(unknown)}")
        missing = sorted({"dims", "stage_spec", "heads", "dim_stem"} - published.keys())
        if missing:
            raise ConfigError(f"the configuration lacks: {', '.join(missing)}")
        per_stage: list[dict[str, Any]] = [{} for _ in range(STAGES)]
        if generation == 1:  # not configurable there: it follows from the stage
            for fields, kernel in zip(per_stage, (9, 7, 5, 3), strict=True):
                fields["offset_kernel"] = kernel
        for key, field in _STAGE_FIELDS.items():
            for stage_index, value in enumerate(_stage_values(published, key)):
                per_stage[stage_index][field] = tuple(value) if key == "stage_spec" else value
        depths = published.get("depths")
        layers = [len(fields["layers"]) for fields in per_stage]
        if depths is not None and list(depths) != layers:
            raise ConfigError(f"depths {list(depths)} do not match stage_spec, which has {layers} layers")
        return cls(
            generation=generation,
            stages=tuple(StageConfig(**fields) for fields in per_stage),
            **{key: published[key] for key in _MODEL_FIELDS if key in published},
        )

    @property
    def can_be_dynamic(self) -> bool:
        """Whether one graph can serve all input sizes: generation 2 without tables or windows of a fixed size."""
        return self.generation == 2 and not any(
            {"L", "S"} & set(stage.layers) or (stage.fixed_pe and stage.use_pe) for stage in self.stages
        )

    @property
    def size_multiple(self) -> int:
        """What an input's sides must be multiples of: 1 where every convolution that halves a map is padded.

        Without the padding a map's last row or column, where the stride does not divide it, would not be looked at; and
        windows, fixed biases and the tables of generation 1 belong to maps of whole cells.
        """
        return 1 if self.can_be_dynamic and self.use_conv_patches else OUTPUT_STRIDE

    @property
    def min_side(self) -> int:
        """The smallest side of an input: that at which no coordinate in a deformable layer divides by 0."""
        step = self.size_multiple
        return next(side for side in itertools.count(step, step) if self._is_defined_at(side))

    def _is_defined_at(self, side: int) -> bool:
        for index, stage in enumerate(self.stages):
            (cells, _), least = self.map_size(index, (side, side)), 1
            if "D" in stage.layers:
                least = _SAMPLED_CELLS if self.generation == 2 else 1
                cells = min(cells, stage.key_side(cells, self.generation))
            if cells < least:
                return False
        return True

    def stride(self, stage: int) -> int:
        """Return how many pixels of the image a cell of the feature map of stage 0 ... 3 has on each side."""
        return self.patch_size << stage

    def map_size(self, stage: int, image_size: tuple[int, int]) -> tuple[int, int]:
        """Return height and width of the feature map of stage 0 ... 3, whose last cells may reach beyond the image."""
        stride = self.stride(stage)
        return -(-image_size[0] // stride), -(-image_size[1] // stride)

    def check_size(self, image_size: tuple[int, int]) -> None:
        """Raise SizeError, naming sizes that work, if no model of this configuration can take `image_size`."""
        height, width = image_size
        multiple, smallest = self.size_multiple, self.min_side
        if height % multiple or width % multiple or min(height, width) < smallest:
            near = sorted({max(smallest, round(side / multiple) * multiple) for side in image_size})
            of = f"multiples of {multiple} from {smallest} up" if multiple > 1 else f"{smallest} or more"
            raise SizeError(f"{height}x{width} cannot work: sides must be {of}, such as {' or '.join(map(str, near))}")
        for index, stage in enumerate(self.stages):
            table = self.map_size(index, (self.img_size, self.img_size))
            if "D" in stage.layers and stage.use_pe and stage.fixed_pe and self.map_size(index, image_size) != table:
                raise SizeError(
                    f"{height}x{width} cannot work: fixed_pes ties stage {index} to {self.img_size}x{self.img_size}"
                )

    def at_size(self, image_size: tuple[int, int], window: int | None = None) -> DATConfig:
        """Return this configuration for inputs of height and width `image_size`.

        Windowed models need a window that suits the maps: `window` where it is given (maps that it does not divide
        are padded, as the dense-prediction code does), else the trained one where it divides every map, else the
        largest that does, as published for 384 pixels. Raises SizeError with sizes that work.
        """
        self.check_size(image_size)
        if window is not None and window < 2:
            raise SizeError(f"a window of {window} cannot work: it must be at least 2")
        return replace(self, stages=tuple(self._stage_at(index, image_size, window) for index in range(STAGES)))

    def _stage_at(self, index: int, image_size: tuple[int, int], window: int | None) -> StageConfig:
        stage = self.stages[index]
        if not {"L", "S"} & set(stage.layers):
            return stage
        if window is not None:
            return replace(stage, window=window)
        height, width = image_size
        map_height, map_width = self.map_size(index, image_size)
        if map_height % stage.window == 0 and map_width % stage.window == 0:
            return stage
        fitting = math.gcd(height, width) // OUTPUT_STRIDE
        if 2 * fitting < stage.window:
            step = OUTPUT_STRIDE * stage.window
            sizes = sorted({max(1, round(side / step)) * step for side in image_size})
            raise SizeError(
                f"{height}x{width} cannot work with the trained window of {stage.window}: sides that can are multiples "
                f"of {step}, such as {' or '.join(map(str, sizes))}; or choose a window, whose maps are then padded"
            )
        return replace(stage, window=fitting)


def _stage_values(published: Mapping[str, Any], key: str) -> Sequence[Any]:
    if key not in published:
        return ()
    values: Sequence[Any] = published[key]
    if len(values) != STAGES:
        raise ConfigError(f"{key} needs {STAGES} values, one a stage, not {len(values)}")
    return values


def _check_stage(stage: StageConfig, index: int, generation: int) -> None:
    where = f"stage {index}"
    for letter in stage.layers:
        if letter not in LAYER_LETTERS:
            known = ", ".join(f"{key} ({name})" for key, name in LAYER_LETTERS.items())
            raise ConfigError(f"{where}: unknown layer {letter!r}; known are {known}")
    if not stage.layers:
        raise ConfigError(f"{where} has no layers")
    if stage.heads < 1 or stage.dim < 1 or stage.dim % stage.heads:
        raise ConfigError(f"{where}: {stage.dim} channels do not divide into {stage.heads} heads")
    if stage.dwc_mlp and generation == 1:
        raise ConfigError(f"{where}: use_dwc_mlps exists in generation 2 only")
    if {"L", "S"} & set(stage.layers) and stage.window < 2:
        raise ConfigError(f"{where}: window_sizes must be at least 2, not {stage.window}")
    if "N" in stage.layers and (stage.neighborhood < 3 or stage.neighborhood % 2 == 0):
        raise ConfigError(f"{where}: nat_ksizes must be odd and at least 3, not {stage.neighborhood}")
    if "D" in stage.layers:
        if stage.groups < 1 or stage.heads % stage.groups:
            raise ConfigError(f"{where}: {stage.heads} heads do not divide into {stage.groups} groups")
        if stage.stride < 1:
            raise ConfigError(f"{where}: strides must be positive, not {stage.stride}")
        if stage.offset_kernel < 1:
            raise ConfigError(f"{where}: ksizes must be positive, not {stage.offset_kernel}")
