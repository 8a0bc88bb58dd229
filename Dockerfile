# syntax=docker/dockerfile:1
# The service with a model inside; torch is in the stage that exports the model, and in no image that serves.
#
#   docker build -t dat-serve .                           the CPU image with the demo model
#   docker build -t dat-serve:cuda --target cuda .        the same for NVIDIA GPUs
#
# docs/deploy/docker.md has the rest: other models, further build arguments, and how the images are run.

# Give it by its digest for builds that are to be the same next year: --build-arg PYTHON_IMAGE=python@sha256:...
ARG PYTHON_IMAGE=docker.io/library/python:3.11.14-slim-bookworm
# The same with a C compiler, which only the stages `native` and `operators` have.
ARG COMPILER_IMAGE=docker.io/library/python:3.11.14-bookworm


# Stands for a folder of weights, which takes its place as --build-context weights=FOLDER.
FROM scratch AS weights
COPY models/demo/dat_demo.safetensors /


FROM ${PYTHON_IMAGE} AS python
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build


# Each stage that installs takes pip's own variables, for builds without the public registries.
FROM python AS export
ARG PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_FIND_LINKS
# Where torch's CPU build is found, which is a tenth of the default one; empty where pip's own sources have it.
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
COPY requirements/torch.txt requirements/serve-cpu.txt requirements/export.txt requirements/
RUN python3.11 -m venv /opt/export \
    && /opt/export/bin/python -m pip install ${TORCH_INDEX_URL:+--extra-index-url "${TORCH_INDEX_URL}"} \
        -r requirements/torch.txt \
    && /opt/export/bin/python -m pip install --require-hashes -r requirements/serve-cpu.txt -r requirements/export.txt
COPY models/ models/
COPY export/ export/
COPY operators/ operators/
COPY service/ service/


# The operators' library with the kernels for GPUs, as a wheel: Triton is here and nowhere else.
FROM ${COMPILER_IMAGE} AS operators
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
ARG PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_FIND_LINKS
# Variants whose kernels are built in; empty: every variant's, which takes minutes.
ARG KERNELS=
COPY requirements/operators.txt requirements/
RUN python3.11 -m venv /opt/operators \
    && /opt/operators/bin/python -m pip install --require-hashes -r requirements/operators.txt
COPY LICENSE ./
COPY models/ models/
COPY kernels/ kernels/
COPY operators/ operators/
# hadolint ignore=SC2086
RUN /opt/operators/bin/python -m operators.wheel --output /wheels --kernels ${KERNELS}


# A graph has the form that is best on what will run it, which is not what builds the image.
FROM export AS model-cuda
ARG MODEL=dat_demo WEIGHTS=dat_demo.safetensors EXPORT_OPTIONS=
COPY --from=weights ${WEIGHTS} /weights/
COPY --from=operators /wheels/ /wheels/
# Unquoted, because these are several words.
# hadolint ignore=SC2086
RUN /opt/export/bin/python -m pip install --no-index --no-deps /wheels/*.whl \
    && /opt/export/bin/python -m export "${MODEL}" --weights "/weights/${WEIGHTS##*/}" --target cuda --repository /models \
        ${EXPORT_OPTIONS}


FROM export AS model-cpu
ARG MODEL=dat_demo WEIGHTS=dat_demo.safetensors EXPORT_OPTIONS=
COPY --from=weights ${WEIGHTS} /weights/
# hadolint ignore=SC2086
RUN /opt/export/bin/python -m export "${MODEL}" --weights "/weights/${WEIGHTS##*/}" --target cpu --repository /models \
        ${EXPORT_OPTIONS}


FROM python AS packages
COPY requirements/ requirements/
COPY deploy/docker/install_serving.sh deploy/docker/


FROM packages AS packages-cuda
ARG PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_FIND_LINKS
ARG EXTRAS=
COPY --from=operators /wheels/ wheels/
# hadolint ignore=SC2086
RUN sh deploy/docker/install_serving.sh serve-cuda ${EXTRAS}


FROM packages AS packages-cpu
ARG PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_FIND_LINKS
ARG EXTRAS=
# hadolint ignore=SC2086
RUN sh deploy/docker/install_serving.sh serve-cpu ${EXTRAS}


FROM ${COMPILER_IMAGE} AS native
WORKDIR /build
COPY service/ service/
RUN python3.11 -m service.images.native


# Compiled here, since nobody can write to the image later; by content, since copying need not keep the files' times.
FROM python AS application
COPY service/ /app/service/
COPY --from=native /build/service/images/native/libdat_bicubic.so /app/service/images/native/
RUN python3.11 -m compileall -q --invalidation-mode unchecked-hash /app/service


FROM ${PYTHON_IMAGE} AS serving
ENV PATH=/opt/serve/bin:$PATH PYTHONUNBUFFERED=1 \
    DAT_HOST=0.0.0.0 DAT_PORT=8000 DAT_REPOSITORY=/models DAT_LOG_FORMAT=json
WORKDIR /app
# A number, by which Kubernetes can see that it is not root's.
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-m", "service", "health"]
ENTRYPOINT ["python", "-m", "service"]


FROM serving AS cuda
ARG VERSION=0.1.0 REVISION=
LABEL org.opencontainers.image.title="DAT Serve for NVIDIA GPUs" \
      org.opencontainers.image.description="Image classification and features with the Deformable Attention Transformer" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
ENV DAT_DEVICE=cuda NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=packages-cuda /opt/serve/ /opt/serve/
COPY LICENSE ./
COPY --from=model-cuda /models/ /models/
COPY --from=application /app/ /app/


FROM serving AS cpu
ARG VERSION=0.1.0 REVISION=
LABEL org.opencontainers.image.title="DAT Serve" \
      org.opencontainers.image.description="Image classification and features with the Deformable Attention Transformer" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
ENV DAT_DEVICE=cpu
COPY --from=packages-cpu /opt/serve/ /opt/serve/
COPY LICENSE ./
COPY --from=model-cpu /models/ /models/
COPY --from=application /app/ /app/
