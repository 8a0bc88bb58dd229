"""The application: its parts, its routes, and its life from the models' start to their end.

There is no application at module level; `create_app` makes one from settings and what hosts the models, which has not
been started. Models load while the server answers: health and metrics from the first moment, inference of each model
once it takes work.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from functools import cache, partial
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.routing import Route
from starlette.types import ASGIApp, Lifespan

from service import VERSION
from service.access.key_limits import KeyLimits
from service.calls.in_flight import InFlight
from service.errors import StartupError
from service.http.bodies.uploads import Limits
from service.http.direct import DirectRoute, ShortWay
from service.http.middleware import RequestContextMiddleware, exception_answers
from service.http.openapi import document as openapi_document
from service.http.root_path import RootPath
from service.http.routes import classify, docs, embeddings, explain, features, models, operations, page
from service.http.routes.v2 import infer as v2_infer
from service.http.routes.v2 import metadata as v2_metadata
from service.http.routes.v2 import repository as v2_repository
from service.http.routes.v2 import statistics as v2_statistics
from service.http.security_headers import SecurityHeaders, cors_layer
from service.http.service import Service
from service.images.pool import DecodePool
from service.images.preprocessing import prepare_pillow
from service.protocol.routes import GRPC_INFERENCE_ROUTES
from service.samples.sampler import load_sampler
from service.serving.control import Hosting
from service.settings import Settings
from service.telemetry.metrics import Metrics
from service.telemetry.tracing import Tracer, load_tracer

_log = logging.getLogger(__name__)

_INFERENCE = (classify.router, features.router, explain.router, embeddings.router, v2_infer.router)
_OTHERS = (
    models.router,
    operations.router,
    docs.router,
    page.router,
    v2_metadata.probes,
    v2_statistics.router,  # before the metadata of a model that could be called "stats"
    v2_metadata.router,
    v2_repository.router,
)

_THREADS_END_S = 0.25
"""For each kind of threads, at the end: no request is left, and what they still do is for nobody."""
_SAMPLE_END_S = 1.0
"""For the last files of the sample."""


def create_app(
    settings: Settings,
    hosting: Hosting,
    *,
    metrics: Metrics,
    on_failed_start: Callable[[StartupError], None],
    on_ready: Callable[[], object] = lambda: _log.info("ready"),
    tracer: Tracer | None = None,
    key_limits: KeyLimits | None = None,
) -> FastAPI:
    """Return the application.

    When all models of the start take work, `on_ready` is called on the event loop, and `on_failed_start` where one
    never will. `metrics` is what the models of `hosting` are counted in. Traces go to `tracer`, or else where the
    settings say; it ends with the application. `key_limits` is shared by several workers.
    """
    prepare_pillow()
    models = hosting.models
    metrics.watch(lambda: models.served)
    metrics.watch_versions(lambda: models.statuses)
    inference, others = _routers(settings)
    service = Service(
        settings=settings,
        models=models,
        control=hosting.control,
        metrics=metrics,
        decode_pool=DecodePool(settings.decode_thread_count, on_abandoned=metrics.decodes_abandoned),
        inference_routes=GRPC_INFERENCE_ROUTES.union(
            route.path for router in inference for route in router.routes if isinstance(route, DirectRoute)
        ),
        body_limits=Limits.of(settings),
        key_limits=key_limits or KeyLimits(settings.api_keys),
        in_flight=InFlight(),
        tracer=tracer or load_tracer(settings),
        sampler=load_sampler(settings, counted=metrics.images_sampled),
    )
    return Application(
        service,
        routers=(*inference, *others),
        lifespan=lambda _: _lifespan(service, hosting, on_failed_start, on_ready),
    )


def _routers(settings: Settings) -> tuple[Sequence[APIRouter], Sequence[APIRouter]]:
    """Return the routers of inference and all others, with those of a cloud where the settings name one."""
    if settings.cloud is None:
        return _INFERENCE, _OTHERS
    from service.http.routes import clouds  # whoever asks for none does not pay for it

    inference, probes = clouds.routers_of(settings.cloud)
    return (*_INFERENCE, inference), (probes, *_OTHERS)


class Application(FastAPI):
    """FastAPI with the routes of one service, which the inference calls reach directly (`http.direct`).

    `state.service` has the parts.
    """

    def __init__(self, service: Service, *, routers: Sequence[APIRouter], lifespan: Lifespan[FastAPI]) -> None:
        super().__init__(
            redirect_slashes=False,  # a redirect would name the host and the scheme that a proxy has changed
            docs_url=None,
            redoc_url=None,
            title=openapi_document.TITLE,
            version=VERSION,
            lifespan=lifespan,
            exception_handlers=exception_answers(),
            swagger_ui_parameters={"validatorUrl": None},
            telemetry={"tracing": False, "metrics": False, "logs": False},  # the service has its own, sends none away
        )
        self.state.service = service
        self._service = service
        self._surround = partial(
            RequestContextMiddleware,
            metrics=service.metrics,
            in_flight=service.in_flight,
            security=SecurityHeaders(tls=service.settings.tls_certificate is not None),
            cors=cors_layer(service.settings.cors_origins),
            tracer=service.tracer,
            sampler=service.sampler,
        )
        self.add_middleware(self._surround)
        self.mount(docs.ASSETS, docs.assets)
        _add_routes(self, routers)
        self._document = cache(partial(openapi_document.of_routes, self.routes, root_path=service.settings.root_path))

    def build_middleware_stack(self) -> ASGIApp:
        """Return all that a request passes, whichever way it goes."""
        root_path = self._service.settings.root_path
        ways = ShortWay(self, super().build_middleware_stack(), surround=self._surround)
        return RootPath(ways, root_path) if root_path else ways

    def openapi(self) -> dict[str, Any]:
        """Return the document of the routes, made once."""
        return self._document()


def interface() -> dict[str, Any]:
    """Return the OpenAPI document, the same as every application's: it depends on no setting and no model."""
    app = FastAPI(openapi_url=None)
    _add_routes(app, (*_INFERENCE, *_OTHERS))
    return openapi_document.of_routes(app.routes)


def _add_routes(app: FastAPI, routers: Sequence[APIRouter]) -> None:
    """Add every route, as it is; what answers GET answers HEAD, of which the server sends no body."""
    for router in routers:
        app.router.routes.extend(router.routes)
    for route in app.routes:
        if isinstance(route, Route) and route.methods and "GET" in route.methods:
            route.methods.add("HEAD")


@contextlib.asynccontextmanager
async def _lifespan(
    service: Service,
    hosting: Hosting,
    on_failed_start: Callable[[StartupError], None],
    on_ready: Callable[[], object],
) -> AsyncIterator[None]:
    """Have the models loaded, and let go of everything at the end, when no request is left."""

    async def watch_start() -> None:
        try:
            await hosting.wait_ready()
        except StartupError as error:
            on_failed_start(error)
        else:
            service.started.set()
            on_ready()

    if service.sampler is not None:
        service.sampler.start()
    await hosting.start()
    starting = asyncio.create_task(watch_start())
    try:
        yield
    finally:
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await hosting.stop(_THREADS_END_S)
        service.decode_pool.shutdown(_THREADS_END_S)
        if service.sampler is not None:
            service.sampler.stop(_SAMPLE_END_S)
        if service.tracer is not None:
            await service.tracer.shutdown()
