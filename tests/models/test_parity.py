"""Every variant computes what the published code computes."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from models.config import DATConfig
from models.dat import DATOutput
from models.variants import VARIANTS, Variant
from tests.golden import synthetic
from tests.golden_files import (
    PARITY_TOLERANCE,
    GoldenFile,
    description,
    golden_files,
    golden_model,
    relative_difference,
    synthetic_input,
)

PUBLISHED = [name for name in VARIANTS if name != "dat_demo"]


def run(golden: GoldenFile) -> tuple[tuple[str, ...], DATOutput]:
    model = golden_model(golden)
    with torch.inference_mode():
        return model.deformable_layers, model(synthetic_input(golden.seed, 2, golden.height, golden.width))


def subsampled(stage: np.ndarray) -> np.ndarray:
    channel_step, step = max(1, stage.shape[1] // 16), max(1, stage.shape[2] // 8)
    return stage[:, ::channel_step, ::step, ::step]


@pytest.mark.parametrize("golden", golden_files(), ids=lambda golden: golden.id)
def test_variant_computes_what_the_published_code_computes(golden: GoldenFile) -> None:
    expected = golden.arrays()
    layers, output = run(golden)
    differences = {
        "logits": relative_difference(output.logits.numpy(), expected["logits"]),
        "embedding": relative_difference(output.embedding.numpy(), expected["embedding"]),
    }
    for number, stage in enumerate(output.stages, start=1):
        values = stage.numpy()
        assert values.shape == tuple(expected[f"stage{number}_shape"])
        mean, std = expected[f"stage{number}_mean_std"]
        assert values.mean() == pytest.approx(mean, abs=1e-4)
        assert values.std() == pytest.approx(std, rel=1e-4)
        differences[f"stage{number}"] = relative_difference(subsampled(values), expected[f"stage{number}"])
    assert layers == tuple(expected["layers"])
    for layer, sampling in zip(layers, output.sampling, strict=True):
        position, reference = expected[f"position/{layer}"], expected[f"reference/{layer}"]
        # the files keep the first image's positions
        differences[layer] = relative_difference(sampling.position.numpy()[: len(position)], position)
        drawn = np.broadcast_to(sampling.reference.numpy(), reference.shape)
        differences[f"{layer} reference"] = relative_difference(drawn, reference)
    assert {name: value for name, value in differences.items() if not value <= PARITY_TOLERANCE} == {}


def published_pixels(image: Image.Image, variant: Variant) -> np.ndarray:
    resized = image.convert("RGB").resize((variant.resize, variant.resize), Image.Resampling.BICUBIC)
    margin = round((variant.resize - variant.input_size) / 2)
    return np.asarray(resized)[margin : margin + variant.input_size, margin : margin + variant.input_size]


PHOTOS_IN_EVERY_RUN = ("dat_tiny", "dat_pp_tiny")
"""One variant of each generation; all of them are compared above, on synthetic images."""


@pytest.mark.parametrize(
    "golden",
    [
        pytest.param(golden, marks=() if golden.variant in PHOTOS_IN_EVERY_RUN else pytest.mark.full, id=golden.id)
        for golden in golden_files()
        if "photo_logits" in golden.arrays()
    ],
)
def test_photos_give_the_published_logits(golden: GoldenFile) -> None:
    variant = VARIANTS[golden.variant]
    photos = [published_pixels(Image.fromarray(photo), variant) for photo in load_sample_images().images]
    with torch.inference_mode():
        logits = golden_model(golden)(torch.from_numpy(synthetic.normalise(np.stack(photos)))).logits.numpy()
    assert relative_difference(logits, golden.arrays()["photo_logits"]) <= PARITY_TOLERANCE


def test_every_published_variant_has_golden_files_with_photos() -> None:
    assert {golden.variant for golden in golden_files() if "photo_logits" in golden.arrays()} == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_table_of_variants_has_the_published_configuration(name: str) -> None:
    variant = VARIANTS[name]
    assert DATConfig.from_published(description(name)["config"], generation=variant.config.generation) == variant.config


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_have_the_published_names_and_shapes(name: str) -> None:
    from models.dat import DAT

    variant = VARIANTS[name]
    with torch.device("meta"):
        model = DAT(variant.config, (variant.input_size, variant.input_size))
    ours = {key: list(value.shape) for key, value in model.state_dict().items()}
    entries = description(name)["state_dict"]
    assert ours == {key: shape for key, shape, _, kind in entries if kind == "parameter"}
    assert sum(parameter.numel() for parameter in model.parameters()) == description(name)["parameters"]
