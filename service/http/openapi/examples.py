"""An example of every JSON answer, by its operation's id, for the OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_MODEL = {"name": "dat_tiny", "version": 1}
_REQUEST_ID = "7f1c1a9d0c3b4f0d9a3f0f8e6d0a4b11"
_TIMINGS = {"decode": 4.1, "preprocess": 1.5, "queue": 0.3, "inference": 52.0, "postprocess": 0.1, "total": 59.2}
_SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"


def _answer(result: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": _MODEL,
        "results": [
            {"index": 0, "filename": "photo.jpg", **result},
            {
                "index": 1,
                "filename": "notes.txt",
                "error": {"code": "unsupported_format", "detail": "The file is of no format that is taken."},
            },
        ],
        "request_id": _REQUEST_ID,
        "timings_ms": _TIMINGS,
    }


_LAYER = {"layer": 0, "name": "stages.2.attns.1", "stage": 3, "block": 2, "query_rows": 14, "query_columns": 14}
_DETAILS = {
    **_MODEL,
    "variant": "dat_tiny",
    "precision": "fp32",
    "created": "2026-01-31T12:00:00+00:00",
    "num_classes": 1000,
    "input_height": 224,
    "input_width": 224,
    "resize_height": 256,
    "resize_width": 256,
    "interpolation": "bicubic",
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "outputs": [
        {"name": "logits", "shape": [1000]},
        {"name": "embedding", "shape": [768]},
        {"name": "stage4", "shape": [768, 7, 7]},
    ],
    "opset": 20,
    "sampling": "gridsample",
    "target": "cpu",
    "weights_source": "dat_tiny_in1k_224.pth",
    "weights_sha256": _SHA256,
    "explain": {"layers": [{**_LAYER, "groups": 3, "points": 49}]},
    "labels": [{"class_id": 0, "name": "tench", "synset": "n01440764"}],
}

_DURATION = {"count": 2, "ns": 104_000_000}
_NONE = {"count": 0, "ns": 0}
_PROTOCOL_MODEL = {
    "name": "dat_tiny",
    "versions": ["1"],
    "platform": "onnxruntime_onnx",
    "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, 224, 224, 3]}],
    "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 1000]}],
}
_CONFIGURATION = {
    "name": "dat_tiny",
    "platform": "onnxruntime_onnx",
    "backend": "onnxruntime",
    "version_policy": {"specific": {"versions": [1]}},
    "max_batch_size": 64,
    "input": [{"name": "image", "data_type": "TYPE_UINT8", "format": "FORMAT_NHWC", "dims": [224, 224, 3]}],
    "output": [{"name": "logits", "data_type": "TYPE_FP32", "dims": [1000]}],
}
_STATISTICS = {
    "model_stats": [
        {
            "name": "dat_tiny",
            "version": "1",
            "last_inference": 1_769_860_800_000,
            "inference_count": 2,
            "execution_count": 2,
            "inference_stats": {
                "success": _DURATION,
                "fail": _NONE,
                "queue": _DURATION,
                "compute_input": _DURATION,
                "compute_infer": _DURATION,
                "compute_output": _DURATION,
                "cache_hit": _NONE,
                "cache_miss": _NONE,
            },
            "batch_stats": [
                {"batch_size": 1, "compute_input": _NONE, "compute_infer": _DURATION, "compute_output": _NONE}
            ],
        }
    ]
}
_INFERRED = {
    "id": "1",
    "model_name": "dat_tiny",
    "model_version": "1",
    "outputs": [{"name": "logits", "datatype": "BYTES", "shape": [1, 1], "data": ["9.41:663:monastery"]}],
}
_READY = {"name": "dat_tiny", "ready": True}

ANSWERS: Mapping[str, Any] = {
    "classify": _answer({"predictions": [{"class_id": 663, "label": "monastery", "score": 0.71}]}),
    "features": _answer({"features": {"embedding": [0.1180, -0.4265, 1.0323]}}),
    "explain": _answer(
        {
            "width": 640,
            "height": 480,
            "layers": [
                {
                    **_LAYER,
                    "query": {"row": 3, "column": 5},
                    "groups": [{"points": [[104.2, 61.9], [231.0, 198.4]], "weights": [0.82, 0.18]}],
                }
            ],
        }
    ),
    "list_models": {"models": [{**_MODEL, "variant": "dat_tiny"}]},
    "get_model": _DETAILS,
    "live": {"status": "alive"},
    "ready": {"status": "ready"},
    "metrics": "# TYPE dat_requests_in_flight gauge\ndat_requests_in_flight 0.0\n",
    "v2_server_metadata": {"name": "dat-serve", "version": "0.1.0", "extensions": ["binary_tensor_data"]},
    "v2_live": {"live": True},
    "v2_ready": {"ready": True},
    "v2_model_ready": _READY,
    "v2_model_version_ready": _READY,
    "v2_model_metadata": _PROTOCOL_MODEL,
    "v2_model_version_metadata": _PROTOCOL_MODEL,
    "v2_model_config": _CONFIGURATION,
    "v2_model_version_config": _CONFIGURATION,
    "v2_stats": _STATISTICS,
    "v2_model_stats": _STATISTICS,
    "v2_model_version_stats": _STATISTICS,
    "v2_infer": _INFERRED,
    "v2_infer_version": _INFERRED,
    "v2_repository_index": [{"name": "dat_tiny", "version": "1", "state": "READY", "reason": ""}],
}
