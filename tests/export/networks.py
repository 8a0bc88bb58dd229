"""Small networks that between them hold every layer kind and switch, for exports that take seconds."""

from __future__ import annotations

from models.config import DATConfig, StageConfig

SIZE = (64, 64)


def first_generation() -> DATConfig:
    """Windows, shifted windows and deformable attention with its table, layer scale, and a positive offset range.

    The windows of the second stage do not divide its map, which is padded.
    """
    stages = (
        StageConfig(dim=16, layers=("L", "S"), heads=2, window=2, layer_scale=0.5),
        StageConfig(dim=16, layers=("S",), heads=2, window=3),
        StageConfig(dim=32, layers=("D",), heads=4, groups=2, offset_kernel=5, offset_range_factor=2, use_pe=True),
        StageConfig(dim=32, layers=("D",), heads=4, groups=4, stride=1, use_pe=True, layer_scale=0.5),
    )
    return DATConfig(generation=1, dim_stem=16, stages=stages, img_size=64, num_classes=5)


def first_generation_biases() -> DATConfig:
    """The other position biases of the first generation, references without offsets, and stages of other widths."""
    stages = (
        StageConfig(dim=16, layers=("D",), heads=2, groups=1, stride=2, no_offsets=True, use_pe=True),
        StageConfig(dim=24, layers=("D",), heads=2, groups=2, stride=2, use_pe=True, fixed_pe=True),
        StageConfig(dim=32, layers=("D",), heads=4, groups=2, use_pe=True, log_cpb=True, offset_range_factor=1),
        StageConfig(dim=32, layers=("D",), heads=4, groups=4, use_pe=True, dwc_pe=True),
    )
    return DATConfig(generation=1, dim_stem=16, stages=stages, img_size=64, num_classes=5)


def second_generation() -> DATConfig:
    """Neighbourhood and deformable attention with convolutional stem, MLPs and local perception units.

    The neighbourhood is the published 7, which the map of the third stage is smaller than.
    """
    layers = (("N", "D"), ("D",), ("N",), ("D",))
    stages = tuple(
        StageConfig(
            dim=16 * (1 + index // 2),
            layers=layers[index],
            heads=2,
            groups=1 + index % 2,
            stride=(8, 4, 2, 1)[index],
            offset_kernel=(9, 7, 5, 3)[index],
            use_pe=True,
            dwc_mlp=True,
            lpu=True,
            layer_scale=0.5 if index == 1 else -1,
        )
        for index in range(4)
    )
    return DATConfig(generation=2, dim_stem=16, stages=stages, img_size=64, num_classes=5, use_conv_patches=True)


def second_generation_biases() -> DATConfig:
    """The other position biases of the second generation, pooled keys, offset ranges, and windows beside them."""
    stages = (
        StageConfig(dim=16, layers=("L", "D"), heads=2, groups=1, stride=4, window=2, no_offsets=True, use_pe=True),
        StageConfig(dim=16, layers=("S", "D"), heads=2, groups=2, stride=2, window=2, use_pe=True, fixed_pe=True),
        StageConfig(dim=32, layers=("D",), heads=4, groups=2, use_pe=True, log_cpb=True, offset_range_factor=0),
        StageConfig(dim=32, layers=("D",), heads=4, groups=4, use_pe=True, dwc_pe=True, offset_range_factor=2),
    )
    return DATConfig(generation=2, dim_stem=16, stages=stages, img_size=64, num_classes=5)


def dynamic() -> DATConfig:
    """Neighbourhood and deformable attention, with a neighbourhood small enough for inputs of 64 pixels."""
    layers = (("N",), ("D",), ("D",), ("D",))
    stages = tuple(
        StageConfig(
            dim=16,
            layers=layers[index],
            heads=2,
            groups=2,
            stride=(8, 4, 2, 1)[index],
            offset_kernel=(9, 7, 5, 3)[index],
            neighborhood=3,
            use_pe=True,
        )
        for index in range(4)
    )
    return DATConfig(generation=2, dim_stem=16, stages=stages, img_size=64, num_classes=5, use_conv_patches=True)


NETWORKS = {
    network.__name__: network
    for network in (first_generation, first_generation_biases, second_generation, second_generation_biases)
}
