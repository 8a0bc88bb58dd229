"""One inference call of `/v1`, in the order of `calls.inference`; `/v2` reads bodies of its own."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import Request

from service.calls.inference import Check, Inferred, check_room, infer_images
from service.calls.upload import Upload
from service.http.bodies.uploads import plan_body
from service.http.context import context_of
from service.http.parameters import InferenceParameters
from service.http.service import Service
from service.images.preprocessing import Preprocessing
from service.serving.served import Served


async def infer(
    request: Request,
    service: Service,
    served: Served,
    parameters: InferenceParameters,
    *,
    outputs: frozenset[str],
    preprocessing: Preprocessing,
    check: Check | None = None,
    images: Sequence[Upload] | None = None,
) -> Inferred[Upload]:
    """Admit, read, decode and infer the images of a request to `served`, which it keeps.

    `preprocessing` is for the size of input that it asks for. `images` are those of a body that was read already, as
    one has to be that says itself what is asked. Raises what `service.errors` has for each way to fail.

    `check` sees what was decoded before anything is inferred, and may raise.
    """
    context, priority = context_of(request), parameters.engine_priority
    if images is None:
        plan = plan_body(context.headers, service.body_limits)
        check_room(context, served, priority, preprocessing.crop)
        images = await plan.read(request.receive, context.work)
    skip_bad = parameters.on_error == "skip"
    return await infer_images(
        context,
        service.decode_pool,
        served,
        images,
        outputs=outputs,
        priority=priority,
        preprocessing=preprocessing,
        skip_bad=skip_bad,
        check=check,
    )
