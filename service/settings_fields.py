"""The fields of the settings: what each is called, what it means, and what it may be by itself.

What fields must be to each other, where their values come from, and what is made of them, is in `service.settings`.
"""

from __future__ import annotations

import ipaddress
import itertools
import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    InstanceOf,
    PlainSerializer,
    SecretStr,
    field_serializer,
    field_validator,
)
from pydantic_settings import NoDecode

from service.access.keys import ApiKey, parse_entries
from service.engine.runtime.options import Device
from service.images.limits import MAX_PIXELS, MAX_SCAN_PIXELS, MAX_SEGMENTS
from service.remote.address import RemoteAddress, is_remote

OWN_PLACES = frozenset({"docs", "health", "metrics", "openapi.json", "page", "problems", "v1", "v2"})
"""What the service's own paths begin with; behind a prefix that begins so, a path could mean two things."""
ALL_MODELS = "all"
"""In place of a model's name: every model of the repository."""

Count = Annotated[int, Field(gt=0)]
Milliseconds = Annotated[int, Field(gt=0)]
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}(:[1-9][0-9]{0,8}(@sha256:[0-9a-f]{64})?)?")
"""A model's name, as manifests have it, and maybe a version, and of that maybe the digest of its manifest."""


class Fields(BaseModel):
    """Every setting, each checked by itself alone."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    repository: Annotated[Path | InstanceOf[RemoteAddress], NoDecode, PlainSerializer(str, when_used="json")] = Path(
        "model-repository"
    )
    """Directory that holds the models, as `<model>/<version>/`, or the address of one elsewhere: s3://BUCKET/PREFIX,
    gs://, az:// or https://. From there, which wants the packages of requirements/remote.txt, what is served is copied
    first."""
    repository_cache: Path | None = None
    """Directory for copies of models from elsewhere, which several processes may share; left out, `dat-serve` in the
    user's cache directory."""
    settings: Path | None = None
    """TOML file of settings by their fields' names, `max_images = 8`; options and variables win over it. Its tables
    `[models.NAME]` are for one model alone."""
    model: Annotated[tuple[str, ...], NoDecode] = ()
    """Models to serve, as NAME or NAME:VERSION, separated by commas or each by an option of its own; `all`, which may
    follow others, for every one in the repository. The first answers where a request names none. May be left out
    where the repository holds only one. NAME:VERSION@sha256:DIGEST wants a manifest.json of that digest."""
    model_version: Annotated[int, Field(gt=0)] | None = None
    """Version of the model, where there is only one; the highest by default."""
    version_policy: str = "latest"
    """Which versions of a model are served, where none is named: `latest`, the highest, or `latest:N`, the N highest.
    The highest of them answers where a request names none."""
    model_control: bool = False
    """Let models be loaded, replaced and unloaded while the service runs: by `python -m service models`, and under
    `/v2/repository`. With API keys, only for those with role=admin."""
    watch_repository: bool = False
    """Load new and changed versions of the models that are served as they appear in the repository, and with `all` new
    models; wants `model_control`."""
    watch_interval_ms: Milliseconds = 5_000
    """How often the repository is looked at, if it is watched. What is found is loaded once two looks in a row have
    seen it alike."""
    device: str = "auto"
    """Device to run on: `auto`, `cpu`, `cuda` or `tensorrt`, with `:1` and so on for further GPUs. `auto` takes CUDA
    where the runtime offers it; a device asked for by name is had or refused. `tensorrt` is an experiment that has not
    been run on a GPU."""
    devices: Annotated[tuple[str, ...], NoDecode] = ()
    """Several devices to run on in place of `device`, separated by commas, as in cuda:0,cuda:1: each gets an engine
    process of its own, and a request goes to the one with the least waiting."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """TCP port to listen on; 0 takes a free one."""
    grpc_port: Annotated[int, Field(ge=0, le=65535)] | None = None
    """TCP port on which the Open Inference Protocol is spoken over gRPC too; 0 takes a free one, and left out there is
    no gRPC. Wants the packages of requirements/grpc.txt."""
    cloud: Literal["sagemaker", "vertex"] | None = None
    """Answer on the paths at which a cloud's platform asks too (`sagemaker`, Amazon's, or `vertex`, Google's), and
    listen on every address and the port that it says, whatever variables and file say; options win."""
    root_path: str = ""
    """Path below which a reverse proxy serves this, as /vision; for the addresses in `/docs`, `/openapi.json` and
    problem documents. Requests may bear it or not."""
    forwarded_allow_ips: Annotated[tuple[str, ...], NoDecode] = ("127.0.0.1", "::1")
    """Proxies whose X-Forwarded-Proto and X-Forwarded-For are believed: addresses and networks, as 10.0.0.0/8,
    separated by commas; * for any, and an empty option for none."""
    instances: Count = 1
    """Runs of a model that may be under way at once on each device, each by an engine process of its own; worthwhile
    where one leaves the device idle."""
    workers: Count = 1
    """HTTP processes, which decode and respond. With 1 (and no `devices`) the engine is a thread of the same process;
    with more each device has an engine process of its own."""
    threads: Annotated[int, Field(ge=0)] = 0
    """Threads that the runtime computes one batch with on the CPU; 0 takes every core. A part of one, as in a limit of
    1.5 processors, is one more."""
    decode_threads: Annotated[int, Field(ge=0)] = 0
    """Threads that decode and resize images, in each worker; 0 shares the cores out among the workers. A part of one is
    one more."""
    strict_device: bool = False
    """Refuse a model of which the device leaves some computing to the CPU, or cannot run the fused graph, in place of
    naming it in a warning."""
    fused: bool = True
    """On CUDA: run a model's fused graph, where it has one and the library of its kernels runs there."""
    cuda_graphs: bool = True
    """On CUDA: record the work of each batch size once, and launch it as one."""
    self_check: bool = True
    """On a GPU: compare every output with the CPU's on one batch before serving."""
    shrink_arena_above: Count | None = None
    """On a GPU: hand memory back after each run of more images than this; left out, only after running out of it."""
    provider_options: Annotated[dict[str, str], NoDecode] = {}
    """Options of the device's execution provider in ONNX Runtime, as name=value separated by commas."""
    batch_buckets: Annotated[tuple[Count, ...], NoDecode] = ()
    """Batch sizes that the model is run with, separated by commas; a batch is padded to the next one.
    Left out: 1,2,4,8 on the CPU, and the powers of two up to 64 elsewhere."""
    max_delay_ms: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """How long a batch that is not full may wait for more images while the device is free."""
    max_body_bytes: Count = 32 * 1024 * 1024
    """Largest request body."""
    max_images: Count = 64
    """Most images in one request."""
    max_image_pixels: Count = MAX_PIXELS
    """Most pixels (width x height) of one image, checked before it is decoded."""
    max_image_scan_pixels: Count = MAX_SCAN_PIXELS
    """Most pixels that decoding one image may go over in all: those of every scan of a progressive JPEG, of every
    strip or tile of a TIFF, and four times those of every frame, slice or tile of AVIF and HEIC; checked before it is
    decoded."""
    max_image_segments: Count = MAX_SEGMENTS
    """Most parts that one image's file may consist of, checked before it is decoded: segments of a JPEG, chunks of a
    PNG, blocks of a GIF, tags, strips and tiles of a TIFF, boxes of AVIF and HEIC and what is in them."""
    max_input_pixels: Count = 1024 * 1024
    """Most pixels (height x width) of the input that a request may ask for by `size`, of a model that was exported with
    a dynamic size. A run's memory grows with them, and faster."""
    max_queued_images: Count = 1024
    """Most images admitted and not yet answered; beyond it requests get 429."""
    cache_images: Annotated[int, Field(ge=0)] = 0
    """Answers to keep for images that come again, in each worker: the outputs of so many, in memory. 0 keeps none."""
    cache_bytes: Count = 256 * 1024 * 1024
    """Most memory for the answers that are kept, in each worker, whatever `cache_images` says."""
    max_wait_ms: Annotated[int, Field(ge=0)] = 0
    """Longest time that an image may be predicted to wait for its turn; beyond it requests get 429, so that those
    taken are answered soon under any load. 0 leaves it to the requests' deadlines."""
    timeout_ms: Milliseconds = 30_000
    """Longest time from a request's arrival to its answer; a request can only ask for less."""
    receive_timeout_ms: Milliseconds = 10_000
    """Longest time in which a request's head must arrive, and then its body."""
    keep_alive_timeout_ms: Milliseconds = 75_000
    """Time after which a connection without a request is closed, in whole seconds. A proxy or balancer in front should
    close its own sooner: it would send a request on a connection that is just closing."""
    drain_timeout_ms: Milliseconds = 30_000
    """Longest time to finish what is in flight after SIGTERM."""
    hang_timeout_ms: Milliseconds = 60_000
    """A single run of the model that takes longer counts as hung, and the engine as dead; so does an engine process
    that computes nothing for so long while it loads. Its process is started again."""
    heartbeat_timeout_ms: Milliseconds = 10_000
    """With several processes: one that is neither loading nor running the model and is not heard of for so long is
    replaced."""
    max_restart_delay_ms: Milliseconds = 5_000
    """Longest wait before an engine, or with several processes any of them, that keeps ending is started again; the
    first wait is 0.1 s."""
    exif_orientation: bool = False
    """Turn images as their EXIF orientation says, or the turn and mirror of AVIF and HEIC. Off: the published
    accuracies were measured without."""
    resize: Literal["exact", "fast"] = "exact"
    """How images get the model's size. `exact`: by the published arithmetic. `fast`: large JPEG files are decoded at a
    fraction of their size first, which moves pixels by some levels."""
    explain: bool = True
    """Answer to where the model looked, if it was exported with explain.onnx; off, that is not loaded."""
    top_k: Count = 5
    """Classes in an answer where the request does not say."""
    v2_outputs: Annotated[tuple[str, ...], NoDecode] = ("logits",)
    """Outputs that `/v2` describes, and answers where a request names none, separated by commas; `all` for every one.
    Any may be asked for by name. One alone, a vector, is what Triton's image client takes."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe log lines to write."""
    log_format: Literal["json", "text"] = "text"
    """`json` writes one JSON object a line."""
    class_metrics: Annotated[int, Field(ge=0)] = 0
    """Classes of a model that the metrics count predictions of, each by itself: those that a process predicts first;
    the rest counts together. 0 counts none; whoever may read `/metrics` learns from it what images are of."""
    tracing: bool = False
    """Send OpenTelemetry traces by OTLP over HTTP, as the standard OTEL_ variables say where to. Wants the packages of
    requirements/tracing.txt."""
    sample_requests: Path | None = None
    """Folder to keep a sample of answered requests in, as Parquet: predictions, and embeddings where they were asked
    for; no keys and no addresses. Wants the packages of requirements/bulk.txt."""
    sample_rate: Annotated[float, Field(gt=0, le=1)] = 0.01
    """Share of the requests that are sampled."""
    sample_max_bytes: Annotated[int, Field(ge=1 << 20)] = 1 << 30
    """Most bytes of all files of the sample; the oldest make way for new ones."""
    sample_images: bool = False
    """Keep the files of images in the sample, too, as they were sent."""
    sample_names: bool = False
    """Keep the names of these files in the sample, too."""
    api_keys: Annotated[tuple[ApiKey, ...], NoDecode] = ()
    """API keys by their hashes, separated by commas, each as NAME:SHA256 and, where it is limited, :rate=10 (requests
    a second) with :burst=20, and :concurrency=4; with :role=admin it may load and unload models. Where any is set,
    `/v1` and `/v2` want one as `Authorization: Bearer`. `python -m service key NAME` makes a key and its entry."""
    cors_origins: Annotated[tuple[str, ...], NoDecode] = ()
    """Origins, such as https://example.org, whose pages may ask from a browser (CORS), by commas; * for any."""
    tls_certificate: Path | None = None
    """Certificate, with its chain, in PEM; with it the service speaks https, and nothing else."""
    tls_key: Path | None = None
    """Private key of the certificate in PEM; left out where the certificate's file holds it."""
    tls_key_password: SecretStr | None = None
    """Password of the private key. Prefer the variable: other users of the machine can read a command line."""
    tls_ca_certificates: Path | None = None
    """Certificates in PEM of which one must have signed a client's own; left out, clients need none."""

    @field_validator("repository", mode="before")
    @classmethod
    def _address_or_path(cls, value: Any) -> Any:
        return RemoteAddress(value) if is_remote(value) else value

    @field_validator("batch_buckets", "devices", "cors_origins", mode="before")
    @classmethod
    def _split_commas(cls, value: Any) -> Any:
        return tuple(item.strip() for item in value.split(",")) if isinstance(value, str) else value

    @field_validator("threads", "decode_threads", mode="before")
    @classmethod
    def _rounded_up(cls, value: Any) -> Any:
        """Return a number of processors, which may be a part of one, as that of threads; anything else as it is."""
        try:
            processors = float(value) if isinstance(value, str | float) else math.nan
        except ValueError:
            return value
        return math.ceil(processors) if 0 < processors < math.inf else value

    @field_validator("model", mode="before")
    @classmethod
    def _split_models(cls, value: Any) -> Any:
        given = (value,) if isinstance(value, str) else value
        if not isinstance(given, (list, tuple)) or not all(isinstance(each, str) for each in given):
            return value
        return tuple(item.strip() for each in given for item in each.split(","))

    @field_validator("model")
    @classmethod
    def _known_models(cls, models: tuple[str, ...]) -> tuple[str, ...]:
        for model in models:
            if not _MODEL.fullmatch(model):
                raise ValueError(f"{model!r} is not a model, which is NAME, NAME:VERSION or {ALL_MODELS}")
        each = [model.partition("@")[0] for model in models]
        twice = sorted({model for model in each if each.count(model) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} is named more than once")
        both = sorted({name for name, version in map(parted, models) if version and name in models})
        if both:
            raise ValueError(f"{', '.join(both)} is named with a version and without")
        if ALL_MODELS in models[:-1]:
            raise ValueError(f"{ALL_MODELS} stands for all others, and comes last")
        return models

    @field_validator("version_policy")
    @classmethod
    def _known_policy(cls, policy: str) -> str:
        if not re.fullmatch(r"latest(:[1-9][0-9]{0,5})?", policy):
            raise ValueError("versions are served by latest, or latest:N for the N highest")
        return policy

    @field_validator("root_path")
    @classmethod
    def _known_root_path(cls, path: str) -> str:
        path = path.rstrip("/")
        if not re.fullmatch(r"(/(?!\.{1,2}(/|$))[A-Za-z0-9._~-]+)*", path):
            raise ValueError("a path such as /vision is wanted, of letters, digits and - . _ ~ between slashes")
        if path and path.split("/")[1] in OWN_PLACES:
            raise ValueError("the service's own paths begin so, and could not be told from those of the proxy")
        return path

    @field_validator("forwarded_allow_ips", mode="before")
    @classmethod
    def _named_proxies(cls, value: Any) -> Any:
        return () if value == "" else cls._split_commas(value)

    @field_validator("forwarded_allow_ips")
    @classmethod
    def _known_proxies(cls, proxies: tuple[str, ...]) -> tuple[str, ...]:
        if proxies == ("*",):
            return proxies
        for proxy in proxies:
            try:
                ipaddress.ip_network(proxy)
            except ValueError as error:
                raise ValueError(f"{error}; what is trusted is an address, a network, or * alone") from error
        return proxies

    @field_validator("v2_outputs", mode="before")
    @classmethod
    def _named_outputs(cls, value: Any) -> Any:
        return () if value in ("all", ["all"]) else cls._split_commas(value)

    @field_validator("batch_buckets")
    @classmethod
    def _ascending(cls, buckets: tuple[int, ...]) -> tuple[int, ...]:
        if any(low >= high for low, high in itertools.pairwise(buckets)):
            raise ValueError("the sizes must ascend, each only once")
        return buckets

    @field_validator("provider_options", mode="before")
    @classmethod
    def _split_pairs(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        pairs = [item.strip().partition("=") for item in value.split(",")]
        if any(not name or not equals for name, equals, _ in pairs):
            raise ValueError("options are written name=value, separated by commas")
        return {name.strip(): content.strip() for name, _, content in pairs}

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        if device != "auto":
            Device.parse(device)
        return device

    @field_validator("devices")
    @classmethod
    def _known_devices(cls, devices: tuple[str, ...]) -> tuple[str, ...]:
        for device in devices:
            Device.parse(device)
        return devices

    @field_validator("cors_origins")
    @classmethod
    def _known_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s?#@]+", origin):
                raise ValueError(f"{origin!r} is not an origin, which is scheme://host or scheme://host:port, or *")
        return origins

    @field_validator("api_keys", mode="before")
    @classmethod
    def _parse_keys(cls, value: Any) -> Any:
        if isinstance(value, list) and all(isinstance(each, str) for each in value):
            value = ",".join(value)
        return parse_entries(value) if isinstance(value, str) else value

    @field_serializer("api_keys")
    def _name_keys(self, keys: tuple[ApiKey, ...]) -> list[str]:
        return [key.name for key in keys]


def parted(model: str) -> tuple[str, int | None]:
    """Return the name and the version, if there is one, of NAME, NAME:VERSION or that with a digest."""
    name, _, version = model.partition("@")[0].partition(":")
    return name, int(version) if version else None
