"""Train the demo model on handwritten digits: `python -m models.demo.train`.

Writes `dat_demo.safetensors` and `labels.tsv` beside this file. Seeded; takes about seven minutes on one core.

The digits are blurred 8 x 8 scans, yet the model should read what a mouse draws: crisp strokes, thin or thick, dark on
light or light on dark, in any place and size. Every training image is therefore moved, turned and scaled, cut to a
stroke of random width by a soft threshold on the enlarged scan, and painted with two random colours.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path
from typing import cast

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from models.dat import DAT
from models.demo.digits import Digits, training_and_held_out
from models.variants import VARIANTS

VARIANT = VARIANTS["dat_demo"]
FOLDER = Path(__file__).parent
WEIGHTS_FILE = FOLDER / "dat_demo.safetensors"
LABELS_FILE = FOLDER / "labels.tsv"

SEED = 0
BATCH = 96
EPOCHS = 110
PEAK_LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.05
AVERAGING = 0.995


def enlarge(images: np.ndarray) -> Tensor:
    """Return images as the service would resize them: float32 (count, 1, side, side) from 0 to 1."""
    side = VARIANT.input_size
    resized = [Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC) for image in images]
    return torch.from_numpy(np.stack([np.asarray(image) for image in resized])).unsqueeze(1).float() / 255


def normalise(images: Tensor) -> Tensor:
    """Apply the variant's mean and standard deviation to RGB from 0 to 1."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (VARIANT.mean, VARIANT.std))
    return (images - mean) / std


def uniform(count: int, low: float, high: float) -> Tensor:
    """Return `count` numbers of U(low, high), shaped to broadcast over images."""
    return torch.empty(count, 1, 1, 1).uniform_(low, high)


def move(images: Tensor) -> Tensor:
    """Turn, shear, scale and shift each image by a random affine map; what comes in from outside is dark."""
    count = len(images)
    angle = uniform(count, -0.3, 0.3).flatten()
    shear = uniform(count, -0.3, 0.3).flatten()
    scale_x, scale_y = (1 / uniform(count, 0.5, 1.15).flatten() for _ in range(2))
    # most drawings keep their proportions roughly
    mix = 0.75
    scale_y = mix * scale_x + (1 - mix) * scale_y
    room = 0.35
    shift_x, shift_y = (uniform(count, -room, room).flatten() * scale_x.clamp(min=0.8) for _ in range(2))
    cosine, sine = angle.cos(), angle.sin()
    rows = [
        torch.stack([scale_x * cosine, scale_x * (shear * cosine - sine), shift_x], 1),
        torch.stack([scale_y * sine, scale_y * (shear * sine + cosine), shift_y], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def restroke(images: Tensor) -> Tensor:
    """Give half of the images crisp strokes of random width, and thicken or thin some further."""
    count = len(images)
    level, sharpness = uniform(count, 0.2, 0.75), uniform(count, 6, 40)
    crisp = torch.sigmoid((images - level) * sharpness)
    thick = F.max_pool2d(crisp, 3, 1, 1)
    thin = -F.max_pool2d(-crisp, 3, 1, 1)
    choice = torch.rand(count, 1, 1, 1)
    crisp = torch.where(choice < 0.3, thick, torch.where(choice < 0.45, torch.maximum(thin, crisp * 0.35), crisp))
    return torch.where(torch.rand(count, 1, 1, 1) < 0.6, crisp, images)


def paint(images: Tensor) -> Tensor:
    """Colour stroke and ground: grey or coloured, either of them the darker, with a little noise."""
    count = len(images)
    dark = torch.rand(count, 3, 1, 1) * 0.35
    light = 1 - torch.rand(count, 3, 1, 1) * 0.35
    grey = torch.rand(count, 1, 1, 1) < 0.7
    dark = torch.where(grey, dark[:, :1], dark)
    light = torch.where(grey, light[:, :1], light)
    pure = torch.rand(count, 1, 1, 1) < 0.5
    dark, light = torch.where(pure, torch.zeros(()), dark), torch.where(pure, torch.ones(()), light)
    inverted = torch.rand(count, 1, 1, 1) < 0.5
    ground, stroke = torch.where(inverted, light, dark), torch.where(inverted, dark, light)
    painted = ground + images * (stroke - ground)
    return (painted + torch.randn_like(painted) * uniform(count, 0, 0.05)).clamp(0, 1)


def augment(images: Tensor) -> Tensor:
    """Return what one epoch sees of `images`, normalised RGB."""
    return normalise(paint(restroke(move(images))))


def initialise(model: DAT) -> None:
    """Set initial weights: truncated normals for matrices and bias tables, as vision transformers use."""
    for name, parameter in model.named_parameters():
        if name.endswith(("rpb", "rpe_table")) or (name.endswith("weight") and parameter.ndim == 2):
            nn.init.trunc_normal_(parameter, std=0.02)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


def accuracy(model: DAT, digits: Digits, *, inverted: bool = False) -> float:
    """Return the fraction of scans that the model reads, light on dark or inverted."""
    images = enlarge(digits.images).expand(-1, 3, -1, -1)
    with torch.inference_mode():
        logits = model.eval()(normalise(1 - images if inverted else images)).logits
    return float((logits.argmax(1).numpy() == digits.classes).mean())


def train(*, epochs: int, seed: int) -> DAT:
    """Train from scratch and return the averaged model in evaluation mode."""
    # one thread: steps this small gain nothing from a second, and the result does not depend on the machine's cores
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    training, held_out = training_and_held_out()
    images, classes = enlarge(training.images), torch.from_numpy(training.classes)
    side = VARIANT.input_size
    model = DAT(VARIANT.config, (side, side))
    initialise(model)
    averaged = torch.optim.swa_utils.AveragedModel(
        model,
        multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(AVERAGING),  # type: ignore[no-untyped-call]
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = epochs * math.ceil(len(images) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=steps, pct_start=0.15)
    started = time.monotonic()
    for epoch in range(epochs):
        losses = []
        model.train()
        for chosen in torch.split(torch.randperm(len(images)), BATCH):
            logits = model(augment(images[chosen])).logits
            loss = F.cross_entropy(logits, classes[chosen], label_smoothing=0.1)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            averaged.update_parameters(model)
            losses.append(loss.item())
        if epoch % 10 == 9 or epoch == epochs - 1:
            current = cast(DAT, averaged.module)
            sys.stderr.write(
                f"epoch {epoch + 1}/{epochs}  loss {np.mean(losses):.3f}  held out {accuracy(current, held_out):.4f}"
                f"  inverted {accuracy(current, held_out, inverted=True):.4f}  {time.monotonic() - started:.0f} s\n"
            )
    return cast(DAT, averaged.module).eval()


def main() -> None:
    """Train, and write the weights and labels."""
    parser = argparse.ArgumentParser(description="Train the demo model on handwritten digits.")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--out", type=Path, default=WEIGHTS_FILE)
    arguments = parser.parse_args()
    model = train(epochs=arguments.epochs, seed=arguments.seed)
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    safetensors.torch.save_file(weights, arguments.out, metadata={"variant": VARIANT.name})
    rows = [f"{digit}\t{digit}\n" for digit in range(VARIANT.config.num_classes)]
    LABELS_FILE.write_text("class_id\tname\n" + "".join(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
