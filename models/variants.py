"""The published variants: configuration, input, published accuracy, and where the weights are found.

One table, `VARIANTS`, is the only place that knows them. Figures are those of the papers' repository
(LeapLabTHU/DAT); accuracies are ImageNet-1k top-1 and top-5 in percent, None where none was published.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.config import DATConfig, StageConfig

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_FIRST_WEIGHTS = "linked from https://github.com/LeapLabTHU/DAT/tree/CVPR2022"
_SECOND_WEIGHTS = "linked from https://github.com/LeapLabTHU/DAT"


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A named model with the facts that belong to its weights.

    Images are resized to `resize` x `resize` pixels, ignoring the aspect ratio, and cropped to the centre
    `input_size` x `input_size`; `mean` and `std` are per RGB channel on the scale 0 to 1.
    """

    name: str
    config: DATConfig
    input_size: int
    resize: int
    top1_percent: float | None = None
    top5_percent: float | None = None
    weights: str = "not published"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


def _first_generation(dim: int, heads: int, depth: int, *, img_size: int = 224, window: int = 7) -> DATConfig:
    layers = (("L", "S"), ("L", "S"), ("L", "D") * (depth // 2), ("L", "D"))
    groups = (-1, -1, heads, 2 * heads)
    kernels = (9, 7, 5, 3)
    stages = tuple(
        StageConfig(
            dim=dim * 2**index,
            heads=heads * 2**index,
            layers=layers[index],
            groups=groups[index],
            window=window,
            offset_kernel=kernels[index],
            stride=1 if groups[index] > 0 else -1,
            offset_range_factor=2 if groups[index] > 0 else -1,
            use_pe=groups[index] > 0,
        )
        for index in range(4)
    )
    return DATConfig(generation=1, dim_stem=dim, stages=stages, img_size=img_size)


def _second_generation(dim: int, heads: int, groups: tuple[int, int, int, int], *, plain: bool = False) -> DATConfig:
    layers = (("N", "D"), ("N", "D") * 2, ("N", "D") * 9, ("D", "D"))
    strides = (8, 4, 2, 1)
    kernels = (9, 7, 5, 3)
    stages = tuple(
        StageConfig(
            dim=dim * 2**index,
            heads=heads * 2**index,
            layers=layers[index],
            groups=groups[index],
            stride=strides[index],
            offset_kernel=kernels[index],
            use_pe=True,
            dwc_mlp=not plain,
            lpu=not plain,
        )
        for index in range(4)
    )
    return DATConfig(generation=2, dim_stem=dim, stages=stages, use_conv_patches=not plain)


_TINY = _first_generation(96, 3, 6)
_SMALL = _first_generation(96, 3, 18)
_BASE = _first_generation(128, 4, 18)
_BASE_384 = _first_generation(128, 4, 18, img_size=384, window=12)
_PP_TINY = _second_generation(64, 2, (1, 2, 4, 8))
_PP_SMALL = _second_generation(96, 3, (1, 2, 3, 6))
_PP_BASE = _second_generation(128, 4, (2, 4, 8, 16))
_P_TINY = _second_generation(64, 2, (1, 2, 4, 8), plain=True)

# Digits fill the frame and carry little detail: 64 pixels, and three of the four stages look around freely.
_DEMO = DATConfig(
    generation=2,
    dim_stem=16,
    img_size=64,
    num_classes=10,
    use_conv_patches=True,
    stages=(
        StageConfig(dim=16, heads=1, layers=("N",), dwc_mlp=True, lpu=True),
        StageConfig(
            dim=32, heads=2, layers=("N", "D"), groups=2, stride=2, offset_kernel=5, use_pe=True, dwc_mlp=True, lpu=True
        ),
        StageConfig(
            dim=64, heads=4, layers=("D", "D"), groups=2, stride=1, offset_kernel=3, use_pe=True, dwc_mlp=True, lpu=True
        ),
        StageConfig(
            dim=128, heads=4, layers=("D",), groups=4, stride=1, offset_kernel=3, use_pe=True, dwc_mlp=True, lpu=True
        ),
    ),
)

VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant(
            name="dat_tiny",
            config=_TINY,
            input_size=224,
            resize=256,
            top1_percent=82.034,
            top5_percent=95.850,
            weights=_FIRST_WEIGHTS,
        ),
        Variant(
            name="dat_small",
            config=_SMALL,
            input_size=224,
            resize=256,
            top1_percent=83.686,
            top5_percent=96.392,
            weights=_FIRST_WEIGHTS,
        ),
        Variant(
            name="dat_base",
            config=_BASE,
            input_size=224,
            resize=256,
            top1_percent=84.028,
            top5_percent=96.686,
            weights=_FIRST_WEIGHTS,
        ),
        Variant(
            name="dat_base_384",
            config=_BASE_384,
            input_size=384,
            resize=438,
            top1_percent=84.754,
            top5_percent=96.982,
            weights=_FIRST_WEIGHTS,
        ),
        Variant(
            name="dat_pp_tiny",
            config=_PP_TINY,
            input_size=224,
            resize=256,
            top1_percent=83.864,
            top5_percent=96.734,
            weights=_SECOND_WEIGHTS,
        ),
        Variant(
            name="dat_pp_small",
            config=_PP_SMALL,
            input_size=224,
            resize=256,
            top1_percent=84.6,
            weights=_SECOND_WEIGHTS,
        ),
        Variant(
            name="dat_pp_base",
            config=_PP_BASE,
            input_size=224,
            resize=256,
            top1_percent=84.9,
            weights=_SECOND_WEIGHTS,
        ),
        Variant(
            name="dat_pp_base_384",
            config=_PP_BASE,
            input_size=384,
            resize=384,
            top1_percent=85.9,
            weights=_SECOND_WEIGHTS,
        ),
        Variant(name="dat_p_tiny", config=_P_TINY, input_size=224, resize=256),
        Variant(
            name="dat_demo",
            config=_DEMO,
            input_size=64,
            resize=64,
            weights="in this repository: models/demo/dat_demo.safetensors",
        ),
    )
}


def find_variant(name: str) -> Variant:
    """Return the variant of that name; KeyError that lists the names where there is none."""
    try:
        return VARIANTS[name]
    except KeyError:
        raise KeyError(f"unknown variant {name!r}; known are: {', '.join(VARIANTS)}") from None
