"""An example of every JSON answer, for the OpenAPI document: what the service builds, for a `dat_tiny`.

`dat_tiny.json` is the manifest that `python -m export dat_tiny` writes, as it is. The settings are the defaults,
whatever a server's own are.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from orjson import Fragment
from pydantic import BaseModel

from service.http.answers import schemas as v1
from service.http.answers.model_schemas import ModelDetails, ModelList, ModelSummary, RequestLimits
from service.http.openapi.components import EXAMPLE_REQUEST_ID
from service.http.routes.v2.response import render
from service.model.directory import Label, ModelDirectory
from service.model.manifest import GraphForm, Manifest
from service.model.sizes import explain_sizes_of, sizes_of
from service.protocol import schemas as v2
from service.protocol.call import Call, Wanted
from service.protocol.metadata import EXTENSIONS, NAME, configuration_of, metadata_of
from service.protocol.statistics import statistics_of
from service.serving.states import ModelState, VersionStatus
from service.settings import Settings
from service.telemetry.metrics import InferenceTotals

MANIFEST_FILE = Path(__file__).with_name("dat_tiny.json")
_CLASSES = {
    0: ("tench, Tinca tinca", "n01440764"),
    483: ("castle", "n02980441"),
    663: ("monastery", "n03781244"),
    698: ("palace", "n03877845"),
}
_LOGITS = {663: 9.41, 698: 8.02, 483: 6.77}
_STAGES_MS = {"decode": 4.1, "preprocess": 1.5, "queue": 0.3, "inference": 52.0, "postprocess": 0.1, "total": 59.2}
_TOTALS = InferenceTotals(
    answered=2,
    failed=0,
    failed_s=0.0,
    stages_s={stage: 2 * time_ms / 1000 for stage, time_ms in _STAGES_MS.items()},
    images=2,
    runs={1: 2},
    runs_s={1: 0.104},
    last_run_s=1_769_860_800,
)


def example_answers() -> dict[str, Any]:
    """Return the examples by their operations' ids."""
    manifest = Manifest.model_validate_json(MANIFEST_FILE.read_bytes())
    labels = [Label(class_id, *_CLASSES.get(class_id, ("",))) for class_id in range(manifest.num_classes)]
    model = ModelDirectory(MANIFEST_FILE.parent, manifest, tuple(labels))
    settings = Settings.model_construct()  # the defaults: to validate is to read the environment
    protocol: dict[str, Any] = {
        "ready": v2.ModelReady(name=manifest.name, ready=True),
        "metadata": metadata_of(manifest, settings, versions=[manifest.version], files=False),
        "config": configuration_of(manifest, settings, versions=[manifest.version], files=False),
        "stats": v2.Statistics(model_stats=[statistics_of(manifest, _TOTALS)]),
    }
    version = str(manifest.version)
    status = VersionStatus(
        manifest.name,
        manifest.version,
        ModelState.READY,
        is_default=True,
        devices=("cpu",),
        graphs=(GraphForm.STANDARD,),
    )
    summary = ModelSummary.of(status, manifest)
    answers = {
        **_of_images(model),
        "list_models": ModelList.of(
            manifest.name,
            RequestLimits.model_validate(settings),
            [summary],
            {(manifest.name, manifest.version): manifest},
        ),
        "get_model": ModelDetails.of_model(
            replace(model, labels=model.labels[:1]),
            summary,
            versions=[summary],
            explain=manifest.explain,
            sizes=sizes_of(manifest, settings),
            explain_sizes=explain_sizes_of(manifest, settings),
            resize=settings.resize,
        ),
        "live": v1.Health(status="alive"),
        "ready": v1.Health(status="ready"),
        "metrics": "# TYPE dat_requests_in_flight gauge\ndat_requests_in_flight 0.0\n",
        "v2_server_metadata": v2.ServerMetadata(name=NAME, version="0.1.0", extensions=list(EXTENSIONS)),
        "v2_live": v2.Live(live=True),
        "v2_ready": v2.Ready(ready=True),
        "v2_stats": protocol["stats"],
        "v2_infer": _inferred(model),
        "v2_infer_version": _inferred(model),
        "v2_repository_index": [v2.IndexEntry(name=manifest.name, version=version, state="READY", reason="")],
    }
    for name, answer in protocol.items():
        answers |= {f"v2_model_{name}": answer, f"v2_model_version_{name}": answer}
    plain: dict[str, Any] = orjson.loads(orjson.dumps(answers, default=BaseModel.model_dump))
    return plain


def _of_images(model: ModelDirectory) -> dict[str, Any]:
    """Return the answers of `/v1` for two images, of which one cannot be used."""
    request: dict[str, Any] = {
        "model": v1.ModelReference(name=model.manifest.name, version=model.manifest.version),
        "request_id": EXAMPLE_REQUEST_ID,
        "timings_ms": v1.Timings(**_STAGES_MS),
    }
    image: dict[str, Any] = {"index": 0, "filename": "photo.jpg"}
    fault = v1.Fault(code="empty_image", detail="The image holds no bytes.")
    failed = v1.FailedImage(index=1, filename="empty.jpg", error=fault)
    prediction = v1.Prediction(class_id=663, label=model.labels[663].name, score=0.71)
    features: dict[str, Any] = {"embedding": [0.1180, -0.4265, 1.0323]}
    group: dict[str, Any] = {"points": [(104.2, 61.9), (231.0, 198.4)], "weights": [0.82, 0.18]}
    assert model.manifest.explain is not None
    layer = model.manifest.explain.layers[0]
    explanation = v1.LayerExplanation(
        layer=0,
        name=layer.name,
        stage=layer.stage,
        block=layer.block,
        query_rows=layer.query_rows,
        query_columns=layer.query_columns,
        query=v1.Cell(row=3, column=5),
        groups=[v1.PointGroup(**group)],
    )
    return {
        "classify": v1.ClassifyResponse(
            results=[v1.ClassifiedImage(**image, predictions=[prediction]), failed], **request
        ),
        "features": v1.FeaturesResponse(results=[v1.ImageFeatures(**image, features=features), failed], **request),
        "embeddings": v1.EmbeddingsResponse(
            object="list",
            data=[v1.Embedding(object="embedding", index=0, embedding=Fragment(b"[0.1052, -0.3804, 0.9209]"))],
            model=f"{model.manifest.name}:{model.manifest.version}",
            usage=v1.EmbeddingsUsage(prompt_tokens=1, total_tokens=1),
        ),
        "explain": v1.ExplainResponse(
            results=[v1.ExplainedImage(**image, width=640, height=480, layers=[explanation]), failed], **request
        ),
    }


def _inferred(model: ModelDirectory) -> Any:
    """Return the answer of `/v2` to the example of a request: the three highest logits of one image."""
    logits = np.zeros(model.manifest.num_classes, np.float32)
    logits[list(_LOGITS)] = list(_LOGITS.values())
    call = Call(id="1", images=(), wanted=[Wanted("logits", binary=False, classes=len(_LOGITS))])
    return orjson.loads(render(call, {"logits": [logits]}, model).body)
