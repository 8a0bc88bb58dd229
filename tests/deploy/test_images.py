"""What the Dockerfile promises, as far as it can be seen without building it; `deploy.image_test` sees the rest."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from service import commands
from service.commands.health import TIMEOUT_S
from service.images.native import LIBRARY
from service.settings import ENV_PREFIX, load_settings
from tests.deploy.dockerfile import copied_from_context, is_ignored, lineage, read_ignored, read_stages
from tests.docs.pages import blocks_of, code_of, commands_of, rows_of

ROOT = Path(__file__).parents[2]
STAGES = read_stages(ROOT / "Dockerfile")
IGNORED = read_ignored(ROOT / ".dockerignore")
TARGETS = ("cpu", "cuda")
PAGE = ROOT / "docs/deploy/docker.md"


def last(target: str, word: str) -> str:
    """What an instruction says in the end in an image."""
    found = [rest for stage in lineage(STAGES, target) for rest in stage.all(word)]
    assert found, f"{target} has no {word}"
    return found[-1]


def variables(target: str) -> dict[str, str]:
    words = [word for stage in lineage(STAGES, target) for rest in stage.all("ENV") for word in shlex.split(rest)]
    return dict(word.split("=", 1) for word in words)


def test_dockerfile_passes_hadolint() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    linted = subprocess.run(
        [hadolint, "--no-color", "Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (linted.returncode, linted.stdout) == (0, "")


def test_cpu_image_is_what_a_build_without_a_target_makes() -> None:
    assert list(STAGES)[-1] == "cpu"


@pytest.mark.parametrize("target", TARGETS)
def test_image_runs_as_a_number_that_is_not_roots(target: str) -> None:
    user, _, group = last(target, "USER").partition(":")
    assert int(user) >= 10000
    assert int(group) >= 10000


@pytest.mark.parametrize("target", TARGETS)
def test_no_shell_stands_between_the_engine_and_the_server(target: str) -> None:
    assert json.loads(last(target, "ENTRYPOINT")) == ["python", "-m", "service"]
    assert last(target, "STOPSIGNAL") == "SIGTERM"


@pytest.mark.parametrize("target", TARGETS)
def test_health_check_is_a_command_of_the_service_that_ends_by_itself_in_time(target: str) -> None:
    options, _, command = last(target, "HEALTHCHECK").partition(" CMD ")
    *python, name = json.loads(command)
    assert python == ["python", "-m", "service"]
    assert name in commands.COMMANDS
    timeout = re.search(r"--timeout=(\d+)s", options)
    assert timeout
    assert int(timeout[1]) > TIMEOUT_S


@pytest.mark.parametrize("target", TARGETS)
def test_variables_of_the_image_are_settings_and_agree_with_what_it_exposes(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = {name: value for name, value in variables(target).items() if name.startswith(ENV_PREFIX)}
    for name, value in ours.items():
        monkeypatch.setenv(name, value)
    settings = load_settings({}, environment=ours)
    assert settings.host == "0.0.0.0"
    assert str(settings.port) == last(target, "EXPOSE")
    assert settings.device == target
    assert variables(target)["PATH"].split(":")[0] == "/opt/serve/bin"


@pytest.mark.parametrize("target", TARGETS)
def test_only_the_exported_model_comes_from_where_torch_is(target: str) -> None:
    copied = [rest for stage in lineage(STAGES, target) for rest in stage.all("COPY")]
    with_torch = [name for name in STAGES if "export" in [stage.name for stage in lineage(STAGES, name)]]
    assert with_torch == ["export", "model-cuda", "model-cpu"]
    from_these = [rest for rest in copied if re.search(rf"--from=({'|'.join(with_torch)}) ", rest)]
    assert from_these == [f"--from=model-{target} /models/ /models/"]
    assert not [stage.name for stage in lineage(STAGES, target) if stage.all("RUN")]
    assert "torch" not in " ".join(STAGES[f"packages-{target}"].all("RUN"))


def test_the_operators_come_as_a_wheel_from_where_the_compiler_and_triton_are() -> None:
    with_triton = [stage.name for stage in STAGES.values() if "operators.txt" in " ".join(stage.all("RUN"))]
    assert with_triton == ["operators"]
    with_compiler = [stage.name for stage in STAGES.values() if stage.base == "${COMPILER_IMAGE}"]
    assert sorted(with_compiler) == ["native", "operators"]
    for target in TARGETS:
        assert not {stage.name for stage in lineage(STAGES, target)} & {*with_compiler, *with_triton}
    (built,) = (run for run in STAGES["operators"].all("RUN") if "operators.wheel" in run)
    assert "--output /wheels" in built
    assert "--kernels" in built
    takers = {name: rest for name, stage in STAGES.items() for rest in stage.all("COPY") if "--from=operators" in rest}
    assert takers == {
        "model-cuda": "--from=operators /wheels/ /wheels/",
        "packages-cuda": "--from=operators /wheels/ wheels/",
    }
    (exported,) = STAGES["model-cuda"].all("RUN")
    assert exported.index("pip install --no-index --no-deps /wheels/*.whl") < exported.index("-m export")


@pytest.mark.parametrize("stage", STAGES.values(), ids=lambda stage: stage.name)
def test_everything_copied_is_there_and_goes_into_the_build(stage: object) -> None:
    for source in copied_from_context(stage):  # type: ignore[arg-type]
        path = ROOT / source
        assert path.exists(), source
        files = [path] if path.is_file() else [each for each in path.rglob("*.*") if "__pycache__" not in each.parts]
        taken = [each for each in files if not is_ignored(IGNORED, each.relative_to(ROOT).as_posix())]
        assert taken, f"{source} is kept out by .dockerignore"


@pytest.mark.parametrize("target", TARGETS)
def test_model_is_exported_for_what_will_run_it(target: str) -> None:
    (run,) = STAGES[f"model-{target}"].all("RUN")
    assert f"--target {target} " in run


def test_locks_that_the_stages_install_are_there() -> None:
    for target in TARGETS:
        (run,) = STAGES[f"packages-{target}"].all("RUN")
        assert f"install_serving.sh serve-{target} " in run
        assert (ROOT / "requirements" / f"serve-{target}.txt").is_file()


@pytest.mark.parametrize(
    "path",
    [
        ".env", ".git/config", "README.md", "service/.env.local", "service/server.pem", "keys/server.key",
        "weights/dat_tiny_in1k_224.pth", "models/dat_tiny_in1k_224.pth", "models/demo/own.safetensors",
        "model-repository/dat_tiny/1/model.onnx", "tests/conftest.py", "service/__pycache__/app.cpython-311.pyc",
        "deploy/image_test/sizes.py", ".venv/bin/python", "service/images/native/libdat_bicubic.so",
    ],
)  # fmt: skip
def test_secrets_weights_and_what_no_stage_copies_stay_out_of_the_build(path: str) -> None:
    assert is_ignored(IGNORED, path)


def test_what_is_compiled_is_compiled_in_a_stage_of_its_own_and_lies_where_the_service_looks() -> None:
    assert STAGES["native"].base == "${COMPILER_IMAGE}"
    assert STAGES["native"].all("RUN") == ["python3.11 -m service.images.native"]
    copied = [rest.split() for rest in STAGES["application"].all("COPY") if "--from=native" in rest]
    assert copied == [
        ["--from=native", f"/build/{LIBRARY.relative_to(ROOT)}", f"/app/{LIBRARY.parent.relative_to(ROOT)}/"]
    ]
    for target in TARGETS:
        assert all(stage.name != "native" for stage in lineage(STAGES, target))


@pytest.mark.parametrize("path", ["models/demo/dat_demo.safetensors", "models/demo/labels.tsv", "service/http/app.py"])
def test_the_demo_model_and_the_service_go_into_the_build(path: str) -> None:
    assert (ROOT / path).is_file()
    assert not is_ignored(IGNORED, path)


def test_the_page_names_only_arguments_and_targets_that_there_are() -> None:
    commands = [words for block in blocks_of(PAGE) for words in commands_of(block)]
    given = [(option, value) for words in commands for option, value in itertools.pairwise(words)]
    known = {word.partition("=")[0] for stage in STAGES.values() for rest in stage.all("ARG") for word in rest.split()}
    passed = {value.partition("=")[0] for option, value in given if option == "--build-arg"}
    explained = {name for (cell,) in rows_of(PAGE, "Build argument") for name in code_of(cell)}
    assert passed <= explained == known | {"PYTHON_IMAGE", "COMPILER_IMAGE"}  # which stand before the first stage
    assert {value for option, value in given if option == "--target"} <= set(STAGES)
    assert {value.partition("=")[0] for option, value in given if option == "--build-context"} <= set(STAGES)
