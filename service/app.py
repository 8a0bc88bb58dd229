"""The application: its parts, its routes, and its life from the engine's start to its end.

There is no application at module level; `create_app` makes one from settings, a checked model directory and an
engine that has not been started. The engine loads while the server answers: health and metrics from the first moment,
inference once it is ready.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from service.decoding import DecodePool
from service.engine.calls import EngineClient
from service.errors import StartupError
from service.imaging import Preprocessing, prepare_pillow
from service.metrics import Metrics
from service.middleware import RequestContextMiddleware, exception_answers
from service.repository import ModelDirectory
from service.routes import classify, features, models, operations, page
from service.routes.context import Service
from service.routes.direct import ShortWay
from service.schemas import Problem
from service.settings import Settings

_log = logging.getLogger(__name__)

_DESCRIPTION = """Image classification and features with the Deformable Attention Transformer.

Errors are `application/problem+json` (RFC 9457). A refused request whose body was not read closes its connection.
"""


def create_app(
    settings: Settings,
    model: ModelDirectory,
    engine: EngineClient,
    *,
    metrics: Metrics,
    on_failed_start: Callable[[StartupError], None],
    on_ready: Callable[[], object] = lambda: _log.info("ready"),
) -> FastAPI:
    """Return the application.

    When the engine has loaded, `on_ready` is called on the event loop, and `on_failed_start` where it could not.
    `metrics` is the engine's observer, or another of the same process.
    """
    prepare_pillow()
    metrics.watch(engine)
    metrics.describe(model.manifest)
    service = Service(
        settings=settings,
        model=model,
        engine=engine,
        metrics=metrics,
        preprocessing=Preprocessing.of(
            model.manifest, max_pixels=settings.max_image_pixels, exif_orientation=settings.exif_orientation
        ),
        decode_pool=DecodePool(settings.decode_thread_count),
    )
    app = FastAPIOffline(
        redoc_url=None,
        static_url="/docs/assets",
        title="DAT Serve",
        version=_version(),
        description=_DESCRIPTION,
        lifespan=lambda _: _lifespan(service, on_failed_start, on_ready),
        exception_handlers=exception_answers(),
        swagger_ui_parameters={"validatorUrl": None},
        telemetry={"tracing": False, "metrics": False, "logs": False},  # the service has its own, and sends none away
    )
    app.state.service = service
    for part in (classify, features):
        app.router.routes.extend(part.router.routes)
    for part in (models, operations, page):
        app.include_router(part.router)
    app.add_middleware(RequestContextMiddleware, metrics=metrics)
    build = app.build_middleware_stack
    app.build_middleware_stack = lambda: ShortWay(app, build(), metrics=metrics)  # type: ignore[method-assign]
    _document(app, secured=bool(settings.api_keys))
    return app


@contextlib.asynccontextmanager
async def _lifespan(
    service: Service, on_failed_start: Callable[[StartupError], None], on_ready: Callable[[], object]
) -> AsyncIterator[None]:
    """Start the engine, and let go of everything at the end, when no request is left."""

    async def watch_start() -> None:
        try:
            await service.engine.wait_ready()
        except StartupError as error:
            on_failed_start(error)
        else:
            on_ready()

    await service.engine.start()
    starting = asyncio.create_task(watch_start())
    try:
        yield
    finally:
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await service.engine.stop()
        service.decode_pool.shutdown()


def _document(app: FastAPI, *, secured: bool) -> None:
    """Complete what FastAPI generates for `/openapi.json`: the problem's schema, and the API key where there is one."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = generate()
            components = document.setdefault("components", {})
            schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
            components["schemas"] |= {**schema.pop("$defs"), Problem.__name__: schema}
            if secured:
                components["securitySchemes"] = {"api_key": {"type": "http", "scheme": "bearer"}}
                for path, operations_of_path in document["paths"].items():
                    for operation in operations_of_path.values() if path.startswith("/v1/") else ():
                        operation["security"] = [{"api_key": []}]
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way to extend the document


def _version() -> str:
    try:
        return version("dat-serve")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "0"
