"""Whether an ONNX graph computes what the torch model computes: every output, several batch sizes and image sizes.

The reference is the torch model itself, fed with images that are normalised here and not by the graph's own front
end, so that the graph's normalisation and layout are compared as well. ONNX Runtime runs on the CPU, without telemetry.

The CPU computes a float16 graph in float32. Such a graph is therefore compared twice: as it is, and with each of its
values rounded as a device with float16 arithmetic rounds them. The larger difference counts.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx
import torch

from export.errors import ExportError
from export.graph import INPUT_NAME, OUTPUT_NAMES, Normalisation
from export.precision import rounded
from models.dat import DAT
from service.model.directory import ModelDirectory

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read by the import below

import onnxruntime


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Largest allowed differences of an output, as multiples of its standard deviation.

    Rounding to float16 or int8 is noise, which the root mean square measures whatever the number of values; its
    maximum grows with them, and has a bound of its own for what goes wrong in one place.
    """

    max: float
    rms: float
    least_std: float = 0.0
    """Standard deviations below this count as this."""


TOLERANCES: Final[Mapping[str, Tolerance]] = {
    "fp32": Tolerance(max=1e-4, rms=1e-4, least_std=1.0),
    "fp16": Tolerance(max=1e-1, rms=1e-2),
    # one value in millions may be far off where an activation leaves the calibrated range
    "int8": Tolerance(max=1.0, rms=1e-1, least_std=1.0),
}
"""By precision."""
BATCH_SIZES: Final = (1, 2, 3)
PROVIDER: Final = "CPUExecutionProvider"

_BLOCK_PIXELS: Final = 16
_ERRORS_ONLY: Final = 3  # it warns of each float16 node that it cannot fold

Images = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float32]
Reference = Callable[[DAT, Normalisation, Images], tuple[FloatArray, ...]]
"""What the torch model computes of uint8 images, output by output."""


@dataclass(frozen=True, slots=True)
class Difference:
    """The difference found in one output, with the standard deviation of the reference it was found in."""

    name: str
    max_abs: float
    rms: float
    reference_std: float
    tolerance: Tolerance

    @property
    def _unit(self) -> float:
        return max(self.tolerance.least_std, self.reference_std)

    @property
    def allowed(self) -> float:
        """Largest difference of one value that passes."""
        return self.tolerance.max * self._unit

    @property
    def allowed_rms(self) -> float:
        """Largest root mean square that passes."""
        return self.tolerance.rms * self._unit

    @property
    def share(self) -> float:
        """How much of the allowance is used, 1 being all; not a number where the difference is not."""
        if self._unit == 0:
            return 0.0 if self.max_abs == 0 else math.inf
        return float(np.maximum(self.max_abs / self.allowed, self.rms / self.allowed_rms))  # NaN prevails

    @property
    def passes(self) -> bool:
        """Whether the difference is allowed; one that is not a number is not."""
        return self.share <= 1


class VerificationFailed(ExportError):
    """The graph differs from the model; the message is the table of differences."""

    def __init__(self, differences: Sequence[Difference]) -> None:
        self.differences = tuple(differences)
        super().__init__(f"the graph does not compute what the model computes\n{differences_table(differences)}")


def differences_table(differences: Iterable[Difference]) -> str:
    """Return the differences as lines of text under a heading."""
    lines = [f"  {'output':<10} {'max |diff|':>11} {'allowed':>11} {'rms':>11} {'allowed':>11} {'std':>9}"]
    for each in differences:
        verdict = "" if each.passes else "  too large"
        numbers = "".join(f" {number:>11.3e}" for number in (each.max_abs, each.allowed, each.rms, each.allowed_rms))
        lines.append(f"  {each.name:<10}{numbers} {each.reference_std:>9.4f}{verdict}")
    return "\n".join(lines)


def sample_images(seed: int, count: int, height: int, width: int) -> Images:
    """Return seeded RGB images, uint8 (count, height, width, 3): patches of flat colour under fine noise.

    Patches give the stages something larger than a pixel to attend to; noise keeps every value distinct.
    """
    random = np.random.default_rng(seed)
    rows, columns = -(-height // _BLOCK_PIXELS), -(-width // _BLOCK_PIXELS)
    patches = random.uniform(16, 240, (count, rows, columns, 3))
    flat = patches.repeat(_BLOCK_PIXELS, axis=1).repeat(_BLOCK_PIXELS, axis=2)[:, :height, :width]
    noisy = flat + random.normal(0, 12, flat.shape)
    return noisy.round().clip(0, 255).astype(np.uint8)


def open_session(model: Path | bytes, library: Path | None = None) -> onnxruntime.InferenceSession:
    """Return an ONNX Runtime session on the CPU that leaves the cores alone between runs.

    `library` has the operators that the runtime lacks.
    """
    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    if library is not None:
        options.register_custom_ops_library(str(library))
    options.log_severity_level = _ERRORS_ONLY
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(model, options, providers=[PROVIDER])


def reference_outputs(model: DAT, normalisation: Normalisation, images: Images) -> tuple[FloatArray, ...]:
    """Return what the torch model computes of uint8 images, in the order of `OUTPUT_NAMES`."""
    with torch.inference_mode():
        output = model(normalised(images, normalisation))
    return tuple(tensor.numpy() for tensor in (output.logits, output.embedding, *output.stages))


def normalised(images: Images, normalisation: Normalisation) -> torch.Tensor:
    """Return uint8 images as the torch model takes them."""
    mean, std = (np.array(values, np.float32) for values in normalisation)
    pixels = (images.astype(np.float32) / np.float32(255) - mean) / std
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())


def verify(
    path: Path,
    model: DAT,
    normalisation: Normalisation,
    *,
    image_sizes: Sequence[tuple[int, int]],
    batch_sizes: Sequence[int] = BATCH_SIZES,
    precision: str = "fp32",
    output_names: tuple[str, ...] = OUTPUT_NAMES,
    reference: Reference = reference_outputs,
    library: Path | None = None,
) -> tuple[Difference, ...]:
    """Compare the graph at `path` with `model` and return the largest difference of each output.

    `output_names` are those that the graph must have, and `reference` says what they must be, in that order; `library`
    is as in `open_session`. Raises VerificationFailed where a difference is too large for the precision, ExportError
    where names, shapes or types differ.
    """
    sessions = [open_session(path, library)]
    names = tuple(output.name for output in sessions[0].get_outputs())
    if names != output_names:
        raise ExportError(f"the graph's outputs are {', '.join(names)} instead of {', '.join(output_names)}")
    if precision == "fp16":
        sessions.append(open_session(rounded(onnx.load(path)).SerializeToString(), library))
    worst: dict[str, Difference] = {}
    for height, width in image_sizes:
        for count in batch_sizes:
            images = sample_images(count, count, height, width)
            expected = reference(model, normalisation, images)
            for session in sessions:
                computed = session.run(None, {INPUT_NAME: images})
                for name, actual, wanted in zip(names, computed, expected, strict=True):
                    difference = compare(name, actual, wanted, precision)
                    if name not in worst or not difference.share <= worst[name].share:
                        worst[name] = difference
    differences = tuple(worst.values())
    if not all(difference.passes for difference in differences):
        raise VerificationFailed(differences)
    return differences


def check_shapes(model: ModelDirectory, image_sizes: Sequence[tuple[int, int]]) -> None:
    """Raise ExportError where a graph gives another shape than the manifest tells, at any of these image sizes."""
    graphs = [(model.model_path, model.manifest.shapes_at)]
    if model.manifest.explain is not None:
        graphs.append((model.explain_path, model.manifest.explain_shapes_at))
    for path, shapes_at in graphs:
        session = open_session(path)
        names = [output.name for output in session.get_outputs()]
        for height, width in image_sizes:
            computed = session.run(None, {INPUT_NAME: sample_images(1, 1, height, width)})
            given = {name: values.shape[1:] for name, values in zip(names, computed, strict=True)}
            for name, told in shapes_at(height, width).items():
                if given.get(name) != told:
                    raise ExportError(
                        f"{path.name}: output {name} is {given.get(name)} for images of {height}x{width}, and its "
                        f"record tells {told}"
                    )


def compare(name: str, actual: FloatArray, reference: FloatArray, precision: str = "fp32") -> Difference:
    """Return the difference of one output; ExportError where it has another shape or type than float32."""
    if actual.shape != reference.shape or actual.dtype != np.float32:
        raise ExportError(
            f"output {name} is {actual.dtype} {actual.shape}, where the model gives float32 {reference.shape}"
        )
    gap = actual - reference
    return Difference(
        name,
        max_abs=float(np.abs(gap).max()),
        rms=float(np.sqrt(np.square(gap, dtype=np.float64).mean())),
        reference_std=float(reference.std()),
        tolerance=TOLERANCES[precision],
    )
