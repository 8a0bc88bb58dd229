"""Fields of manifests that KServe's own models do not know; run by its own interpreter, it prints a JSON list of paths.

Arguments: the manifests' files. What Kubernetes' types hold, such as a container, is left to Kubernetes' schemas.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kserve.models
import yaml

KINDS = {"InferenceService": "V1beta1InferenceService", "ServingRuntime": "V1alpha1ServingRuntime"}


def unknown(value: Any, kind: str, path: str) -> Iterator[str]:
    if item := re.fullmatch(r"list\[(.+)\]", kind):
        for index, each in enumerate(value):
            yield from unknown(each, item[1], f"{path}[{index}]")
        return
    model = getattr(kserve.models, kind, None)
    if model is None:  # not KServe's
        return
    attributes = {name: attribute for attribute, name in model.attribute_map.items()}
    for name, each in value.items():
        if name in attributes:
            yield from unknown(each, model.openapi_types[attributes[name]], f"{path}.{name}")
        else:
            yield f"{path}.{name} is no field of {kind}"


def problems(path: Path) -> list[str]:
    document = yaml.safe_load(path.read_text())
    return list(unknown(document, KINDS[document["kind"]], document["kind"]))


if __name__ == "__main__":
    print(json.dumps([each for path in sys.argv[1:] for each in problems(Path(path))]))  # noqa: T201
