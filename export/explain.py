"""`explain.onnx`: the graph that says where a model's deformable attention layers looked, and with what attention.

A graph of its own, in float32 whatever the model's precision, so that `model.onnx` is what it is without it.
Invariants: its input is that of `model.onnx`; for the i-th deformable layer, in the order in which they run, it gives,
float32 and batch first,

    position{i}    (batch, groups, keys, 2)         (y, x) as in models.deformable_attention
    attention{i}   (batch, groups, queries, keys)   probabilities, averaged over the heads of the group

with keys and queries in row-major order. What the network computes after the last layer's attention is not in it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import onnx
import torch
from torch import Tensor

from export.graph import ImageModel, Normalisation, export_graph
from export.job import ExportJob
from export.verify import BATCH_SIZES, Difference, FloatArray, Images, normalised, verify
from models.dat import DAT, DATOutput
from models.deformable_attention import DeformableAttention, Sampling
from service.model.explain_record import ExplainLayerRecord, ExplainRecord, attention_output, position_output


class ExplainModel(ImageModel):
    """A DAT that takes images as they are sent, and gives what `output_names` lists."""

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Run on pixels from 0 to 255."""
        return explanations(self.model(self.pixels(image), with_attention=True))


def explanations(output: DATOutput) -> tuple[Tensor, ...]:
    """Return the positions and the groups' attention of every layer, in the order of `output_names`."""
    return tuple(itertools.chain.from_iterable(map(_explanation, output.sampling)))


def _explanation(sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Return (batch, groups, keys, 2) and (batch, groups, queries, keys)."""
    position, attention = sampling.position.flatten(2, 3), sampling.attention
    assert attention is not None  # it was asked for
    groups, heads = position.shape[1], attention.shape[1]
    return position, attention.reshape(-1, groups, heads // groups, *attention.shape[2:]).mean(2)


def output_names(model: DAT) -> tuple[str, ...]:
    """Return the names of the graph's outputs."""
    indices = range(len(model.deformable_layers))
    return tuple(name for index in indices for name in (position_output(index), attention_output(index)))


def explain_graph(job: ExportJob, model: DAT) -> onnx.ModelProto:
    """Return the graph in float32, in the form that the job's target takes; raises ExportError as `export_graph`."""
    graph = export_graph(
        model,
        job.normalisation,
        strategy=job.strategy,
        opset=job.graph_opset,
        example_size=job.input_size,
        tuned_for_cpu=job.target.tuned_for_cpu,
        output_names=output_names(model),
        front=ExplainModel,
    )
    job.target.check(graph)
    return graph


def reference_explanations(model: DAT, normalisation: Normalisation, images: Images) -> tuple[FloatArray, ...]:
    """Return what the torch model computes of uint8 images, in the order of `output_names`."""
    with torch.inference_mode():
        output = model(normalised(images, normalisation), with_attention=True)
        return tuple(tensor.numpy() for tensor in explanations(output))


def verify_explain(
    path: Path,
    model: DAT,
    normalisation: Normalisation,
    *,
    image_sizes: Sequence[tuple[int, int]],
    batch_sizes: Sequence[int] = BATCH_SIZES,
) -> tuple[Difference, ...]:
    """Compare the graph at `path` with `model`, as `verify` does, by the tolerances of float32."""
    return verify(
        path,
        model,
        normalisation,
        image_sizes=image_sizes,
        batch_sizes=batch_sizes,
        output_names=output_names(model),
        reference=reference_explanations,
    )


def explain_record(model: DAT, image_size: tuple[int, int], differences: Sequence[Difference]) -> ExplainRecord:
    """Return what the manifest says of the graph, whose outputs differ from torch's as given."""
    largest = {each.name: each.max_abs for each in differences}
    return ExplainRecord(
        layers=tuple(
            _layer_record(model, name, image_size, largest[position_output(index)], largest[attention_output(index)])
            for index, name in enumerate(model.deformable_layers)
        )
    )


def _layer_record(
    model: DAT, name: str, image_size: tuple[int, int], position_difference: float, attention_difference: float
) -> ExplainLayerRecord:
    layer = model.get_submodule(name)
    assert isinstance(layer, DeformableAttention)
    _, stage, _, block = name.split(".")
    query_rows, query_columns = model.config.map_size(int(stage), image_size)
    key_rows, key_columns = layer.key_size(query_rows, query_columns)
    key_window, key_padding = layer.stage.key_window(layer.generation)
    return ExplainLayerRecord(
        name=name,
        stage=int(stage) + 1,
        block=int(block) + 1,
        groups=layer.groups,
        key_rows=key_rows,
        key_columns=key_columns,
        query_rows=query_rows,
        query_columns=query_columns,
        stride=model.config.stride(int(stage)),
        key_window=key_window,
        key_stride=layer.stage.stride,
        key_padding=key_padding,
        position_difference=position_difference,
        attention_difference=attention_difference,
    )
