"""What the Helm chart and the KServe examples say to Kubernetes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from service.settings import CLIENT_API_KEY, ENV_PREFIX, OF_ONE_MODEL, Settings, load_settings
from tests.docs.pages import blocks_of, blocks_run_by, commands_of
from tests.integration.conftest import ROOT

CHART = ROOT / "deploy/helm/dat-serve"
KSERVE = ROOT / "deploy/kserve"
PAGE = ROOT / "docs/deploy/kubernetes.md"
KSERVE_PYTHON = ROOT / ".venv/kserve/bin/python"
HELM = Path(sys.executable).parent / "helm"
VERSIONS = ("1.29", "1.37")
CHARTS_OWN = {
    "grpc_port",
    "repository",
    "repository_cache",
    "device",
    "devices",
    "host",
    "port",
    "settings",
    "model_control",
    "watch_repository",
    "api_keys",
    "tls_certificate",
    "tls_key",
    "tls_key_password",
    "tls_ca_certificates",
}
"""Settings that the chart decides by other values."""

Manifest = dict[str, Any]

EXAMPLE = yaml.safe_load(next(block.text for block in blocks_of(PAGE) if block.language == "yaml"))
SEVERAL_MODELS: dict[str, Any] = {
    "models": {
        "names": ["dat_tiny", "dat_base:2"],
        "default": "dat_base:2",
        "settings": {
            "dat_tiny": {"max_delay_ms": 2, "batch_buckets": "1,8", "top_k": 3},
            "dat_base": {"explain": False},
        },
        "volume": {"persistentVolumeClaim": {"claimName": "models"}},
        "watch": True,
    }
}
ELSEWHERE: dict[str, Any] = {
    "models": {
        "address": "s3://models/dat",
        "names": [f"dat_tiny:3@sha256:{'0' * 64}"],
        "credentialsSecret": "bucket",
        "watch": True,
        "cache": {"persistentVolumeClaim": {"claimName": "copies"}},
    },
    "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/dat"}},
    "networkPolicy": {"egress": [{"ports": [{"port": 443}, {"port": 53, "protocol": "UDP"}]}]},
}
CASES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "several models": SEVERAL_MODELS,
    "the page's example": EXAMPLE,
    "models from elsewhere": ELSEWHERE,
    "several GPUs": {"gpu": {"count": 2, "runtimeClassName": "nvidia"}, "tolerations": [{"operator": "Exists"}]},
    "everything off": {
        "podDisruptionBudget": {"enabled": False},
        "networkPolicy": {"enabled": False},
        "replicas": 1,
        "resources": {"requests": {}, "limits": {}},
    },
    "everything on": {
        **EXAMPLE,
        "autoscaling": {"enabled": True, "queuedImages": 32, "cpuUtilization": 50},
        "networkPolicy": {
            "from": [{"namespaceSelector": {"matchLabels": {"name": "ingress"}}}],
            "metricsFrom": [{"podSelector": {"matchLabels": {"app": "prometheus"}}}],
            "egress": [{"ports": [{"port": 4318}]}],
        },
        "settings": {
            "drain_timeout_ms": 90500,
            "log_format": "json",
            "max_body_bytes": 33554432,
            "workers": 2,
            "batch_buckets": "1,8",
        },
        "podAnnotations": {"note": "yes"},
        "podLabels": {"team": "images"},
        "nodeSelector": {"disk": "fast"},
        "affinity": {"nodeAffinity": {}},
        "priorityClassName": "high",
        "imagePullSecrets": [{"name": "registry"}],
        "image": {"repository": "r.example.org/dat", "digest": "sha256:" + "a" * 64},
    },
}


def helm(*arguments: str, values: dict[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
    command = [str(HELM), *arguments, *([] if values is None else ["--values", "-"])]
    return subprocess.run(
        command, input=json.dumps(values), cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )


def rendered(values: dict[str, Any], version: str = VERSIONS[-1]) -> list[Manifest]:
    ran = helm("template", "dat", str(CHART), "--kube-version", version, values=values)
    assert ran.returncode == 0, ran.stderr
    return [document for document in yaml.safe_load_all(ran.stdout) if document]


def of_kind(manifests: list[Manifest], kind: str) -> Manifest:
    (found,) = [each for each in manifests if each["kind"] == kind]
    return found


def pod_of(manifests: list[Manifest]) -> Manifest:
    spec: Manifest = of_kind(manifests, "Deployment")["spec"]["template"]["spec"]
    return spec


def container_of(manifests: list[Manifest]) -> Manifest:
    (container,) = pod_of(manifests)["containers"]
    return dict(container)


def environment_of(manifests: list[Manifest]) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container_of(manifests)["env"] if "value" in each}


def settings_of(environment: dict[str, str]) -> Settings:
    """Return the settings that the variables make; raises SettingsError as the service would.

    A file that they name is the pod's, and left out.
    """
    options = {name.removeprefix(ENV_PREFIX).lower(): value for name, value in environment.items()}
    options.pop("settings", None)
    return load_settings(options)


@pytest.fixture(scope="module", params=CASES)
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    return rendered(CASES[request.param])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("case", CASES)
def test_kubernetes_takes_every_manifest(case: str, version: str) -> None:
    kinds = set()
    for manifest in rendered(CASES[case], version):
        if manifest["apiVersion"] != "monitoring.coreos.com/v1":
            kubernetes_validate.validate(manifest, version, strict=True)
            kinds.add(manifest["kind"])
    assert kinds >= {"Deployment", "Service", "ServiceAccount", "Pod"}


def test_the_chart_has_no_complaint() -> None:
    ran = helm("lint", "--strict", str(CHART))
    assert ran.returncode == 0, ran.stdout


def test_the_pages_commands_run() -> None:
    (block,) = blocks_run_by(__file__)
    for program, *arguments in commands_of(block):
        assert program == "helm"
        ran = helm(*arguments)
        assert ran.returncode == 0, ran.stderr


def test_the_pages_loop_finds_the_pods_that_serve_and_no_others() -> None:
    (block,) = [block for block in blocks_of(PAGE) if "kubectl exec" in block.text]
    (selector,) = re.findall(r"--selector ([^)]+)\)", block.text)
    wanted = dict(pair.split("=") for pair in selector.split(","))
    manifests = rendered(EXAMPLE)
    assert wanted == of_kind(manifests, "Deployment")["spec"]["selector"]["matchLabels"]
    assert not wanted.items() <= of_kind(manifests, "Pod")["metadata"]["labels"].items()
    assert CLIENT_API_KEY in block.text


def test_pods_are_found_by_what_selects_them(manifests: list[Manifest]) -> None:
    deployment = of_kind(manifests, "Deployment")
    selector = deployment["spec"]["selector"]["matchLabels"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    asking = of_kind(manifests, "Pod")["metadata"]["labels"]
    assert selector.items() <= labels.items()
    assert not selector.items() <= asking.items()
    service = of_kind(manifests, "Service")
    assert service["spec"]["selector"] == selector
    for kind, path in (("PodDisruptionBudget", "selector"), ("NetworkPolicy", "podSelector")):
        for each in manifests:
            if each["kind"] == kind:
                assert each["spec"][path]["matchLabels"] == selector
    for each in manifests:
        if each["kind"] == "ServiceMonitor":
            found_by = each["spec"]["selector"]["matchLabels"]
            assert found_by.items() <= service["metadata"]["labels"].items()
            assert service["metadata"]["labels"][each["spec"]["jobLabel"]] == "dat-serve"


def test_no_pod_has_more_rights_than_it_needs(manifests: list[Manifest]) -> None:
    for pod in (pod_of(manifests), of_kind(manifests, "Pod")["spec"]):
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 10001
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_probes_ask_what_they_are_about(manifests: list[Manifest]) -> None:
    container = container_of(manifests)
    asked = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}
    assert asked == {"startup": "/health/ready", "readiness": "/health/ready", "liveness": "/health/live"}
    assert {container[f"{name}Probe"]["httpGet"]["port"] for name in asked} == {"http"}
    assert container["ports"] == [{"name": "http", "containerPort": 8000}]


def test_a_pod_is_given_the_time_that_its_drain_takes(manifests: list[Manifest]) -> None:
    drain_s = (
        int(environment_of(manifests).get("DAT_DRAIN_TIMEOUT_MS", Settings.model_fields["drain_timeout_ms"].default))
        / 1000
    )
    before_s = container_of(manifests)["lifecycle"]["preStop"]["sleep"]["seconds"]
    # 15 s is what the processes may take to end after the drain
    assert pod_of(manifests)["terminationGracePeriodSeconds"] >= before_s + drain_s + 15


def test_pods_that_are_all_replaced_at_once_have_no_share_that_is_replaced_first() -> None:
    strategy = of_kind(rendered({"strategy": {"type": "Recreate"}}), "Deployment")["spec"]["strategy"]
    assert strategy == {"type": "Recreate"}  # Kubernetes refuses rollingUpdate beside it


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_node_can_be_emptied_however_few_pods_there_are(replicas: int) -> None:
    budget = of_kind(rendered({"replicas": replicas}), "PodDisruptionBudget")["spec"]
    assert budget["maxUnavailable"] == 1
    assert "minAvailable" not in budget


def test_an_older_kubernetes_waits_by_a_command() -> None:
    command = container_of(rendered({}, "1.29"))["lifecycle"]["preStop"]["exec"]["command"]
    assert command[:2] == ["python", "-c"]
    compile(command[2], "preStop", "exec")


def test_the_environment_is_made_of_settings_that_the_service_takes(manifests: list[Manifest]) -> None:
    names = {each["name"] for each in container_of(manifests)["env"]}
    assert names <= {ENV_PREFIX + name.upper() for name in Settings.model_fields}
    settings = settings_of(environment_of(manifests))  # which refuses values outside their domains
    assert settings.log_format == "json"


def test_whole_numbers_stay_whole() -> None:
    assert environment_of(rendered(CASES["everything on"]))["DAT_MAX_BODY_BYTES"] == "33554432"


def test_threads_follow_the_limit_unless_they_are_set() -> None:
    by_name = {each["name"]: each for each in container_of(rendered({}))["env"]}
    for name in ("DAT_THREADS", "DAT_DECODE_THREADS"):
        assert by_name[name]["valueFrom"]["resourceFieldRef"]["resource"] == "limits.cpu"
    set_to = rendered({"settings": {"threads": 3}})
    assert environment_of(set_to)["DAT_THREADS"] == "3"


def test_a_part_of_a_processor_is_a_thread_of_its_own() -> None:
    settings = settings_of(environment_of(rendered({"settings": {"threads": 1.5, "decode_threads": 0.5}})))
    assert (settings.threads, settings.decode_threads) == (2, 1)


def test_resources_may_be_left_to_the_namespace() -> None:
    ran = helm("template", "dat", str(CHART), "--set", "resources=null")
    assert ran.returncode == 0, ran.stderr
    manifests = [each for each in yaml.safe_load_all(ran.stdout) if each]
    assert not any(container_of(manifests)["resources"].values())
    for manifest in manifests:
        kubernetes_validate.validate(manifest, VERSIONS[-1], strict=True)
    for key in ("requests", "limits"):
        assert helm("template", "dat", str(CHART), "--set", f"resources.{key}=null").returncode == 0
    scaled = helm("template", "dat", str(CHART), "--set", "resources=null,autoscaling.enabled=true")
    assert "resources.requests.cpu" in scaled.stderr


def tolerated(values: dict[str, Any]) -> list[str]:
    """Return the keys of the taints that pods tolerate, which keep others off nodes with GPUs."""
    tolerations = pod_of(rendered(values)).get("tolerations", [])
    assert all((each["operator"], each["effect"]) == ("Exists", "NoSchedule") for each in tolerations)
    return [each["key"] for each in tolerations]


def test_nodes_are_tainted_by_their_gpus_or_by_slices_of_these() -> None:
    slice_of_one = "nvidia.com/mig-1g.10gb"
    assert tolerated({}) == []
    assert tolerated({"gpu": {"count": 1}}) == ["nvidia.com/gpu"]
    mig = {"gpu": {"count": 1, "resource": slice_of_one}}
    assert tolerated(mig) == [slice_of_one, "nvidia.com/gpu"]
    assert container_of(rendered(mig))["resources"]["limits"][slice_of_one] == 1
    assert tolerated({"gpu": {"count": 1, "resource": "amd.com/gpu"}}) == ["amd.com/gpu"]
    for part in ("limits", "requests"):
        assert tolerated({"resources": {part: {slice_of_one: 1}}}) == [slice_of_one, "nvidia.com/gpu"]


def test_a_gpu_is_asked_for_only_where_it_is_wanted() -> None:
    plain, one, two = (rendered({"gpu": {"count": count}}) for count in (0, 1, 2))
    assert "nvidia.com/gpu" not in container_of(plain)["resources"]["limits"]
    assert "tolerations" not in pod_of(plain)
    assert environment_of(plain)["DAT_DEVICES"] == "cpu"
    assert container_of(one)["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert environment_of(one)["DAT_DEVICES"] == "cuda:0"
    assert environment_of(two)["DAT_DEVICES"] == "cuda:0,cuda:1"
    assert container_of(one)["image"].endswith("-cuda")
    assert not container_of(plain)["image"].endswith("-cuda")


def test_autoscaling_takes_the_number_of_pods_over() -> None:
    fixed, scaled = rendered({}), rendered(CASES["everything on"])
    assert of_kind(fixed, "Deployment")["spec"]["replicas"] == 2
    assert not [each for each in fixed if each["kind"] == "HorizontalPodAutoscaler"]
    deployment = of_kind(scaled, "Deployment")
    assert "replicas" not in deployment["spec"]
    scaler = of_kind(scaled, "HorizontalPodAutoscaler")["spec"]
    assert scaler["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert [metric["type"] for metric in scaler["metrics"]] == ["Resource", "Pods"]
    adapter = yaml.safe_load((CHART.parent / "prometheus-adapter.yaml").read_text())
    offered = {rule["seriesQuery"].partition("{")[0] for rule in adapter["rules"]["custom"]}
    assert scaler["metrics"][1]["pods"]["metric"]["name"] in offered


def test_the_network_lets_in_those_named_and_the_scraper_and_nothing_out() -> None:
    everyone, named = rendered({}), rendered(CASES["everything on"])
    policy = of_kind(everyone, "NetworkPolicy")["spec"]
    assert policy["ingress"] == [{"ports": [{"port": "http", "protocol": "TCP"}]}]
    assert policy["egress"] == []
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    (rule,) = of_kind(named, "NetworkPolicy")["spec"]["ingress"]
    asking = of_kind(named, "Pod")["metadata"]["labels"]
    assert {"podSelector": {"matchLabels": {"app": "prometheus"}}} in rule["from"]
    assert {"namespaceSelector": {"matchLabels": {"name": "ingress"}}} in rule["from"]
    assert any(
        peer.get("podSelector", {}).get("matchLabels", {"": ""}).items() <= asking.items() for peer in rule["from"]
    )


def test_models_come_from_the_volume_where_there_is_one() -> None:
    mounted = rendered(EXAMPLE)
    assert environment_of(mounted)["DAT_REPOSITORY"] == "/mnt/models"
    (mount,) = [each for each in container_of(mounted)["volumeMounts"] if each["name"] == "models"]
    assert mount == {"name": "models", "mountPath": "/mnt/models", "readOnly": True}
    assert "DAT_REPOSITORY" not in environment_of(rendered({}))


def test_models_come_from_an_address_where_there_is_one() -> None:
    pods = rendered(ELSEWHERE)
    settings = settings_of(environment_of(pods))
    assert (str(settings.repository), str(settings.repository_cache)) == ("s3://models/dat", "/mnt/model-cache")
    assert settings.digest_of("dat_tiny", 3) == "0" * 64
    (mount,) = [each for each in container_of(pods)["volumeMounts"] if each["name"] == "model-cache"]
    assert mount == {"name": "model-cache", "mountPath": "/mnt/model-cache"}
    (volume,) = [each for each in pod_of(pods)["volumes"] if each["name"] == "model-cache"]
    assert volume["persistentVolumeClaim"] == {"claimName": "copies"}
    assert container_of(pods)["envFrom"] == [{"secretRef": {"name": "bucket"}}]
    assert of_kind(pods, "ServiceAccount")["metadata"]["annotations"] == ELSEWHERE["serviceAccount"]["annotations"]
    own = rendered({**ELSEWHERE, "models": {"address": "https://models.example.org"}})
    (volume,) = [each for each in pod_of(own)["volumes"] if each["name"] == "model-cache"]
    assert volume["emptyDir"] == {"sizeLimit": "8Gi"}
    assert "model-cache" not in str(rendered({}))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"models": {"address": "s3://b"}}, "models.address wants networkPolicy.egress"),
        (
            {**ELSEWHERE, "models": {"address": "s3://b", "volume": {"emptyDir": {}}}},
            "takes the place of models.volume",
        ),
        ({**ELSEWHERE, "models": {"address": "s3://b?key=secret"}}, "address"),
    ],
)
def test_an_address_that_could_not_be_read_is_refused(values: dict[str, Any], reason: str) -> None:
    ran = helm("template", "dat", str(CHART), values=values)
    assert ran.returncode != 0
    assert reason in ran.stderr


def models_of(**models: Any) -> dict[str, str]:
    """Return the variables of a pod with these values below `models`."""
    return environment_of(rendered({"models": models}))


def test_the_default_model_comes_first_and_each_once() -> None:
    assert environment_of(rendered(SEVERAL_MODELS))["DAT_MODEL"] == "dat_base:2,dat_tiny"
    assert models_of(names=["b", "a"])["DAT_MODEL"] == "b,a"
    assert models_of(names=["all"], default="a")["DAT_MODEL"] == "a,all"
    assert models_of(default="a")["DAT_MODEL"] == "a"
    assert "DAT_MODEL" not in models_of()
    assert environment_of(rendered({"settings": {"model": "a"}}))["DAT_MODEL"] == "a"  # as it was with one model


def test_models_are_loaded_while_pods_run_only_where_that_is_asked_for() -> None:
    volume = {"nfs": {"server": "files", "path": "/models"}}
    assert {"DAT_MODEL_CONTROL", "DAT_WATCH_REPOSITORY"}.isdisjoint(models_of(volume=volume))
    controlled, watching = settings_of(models_of(control=True)), settings_of(models_of(watch=True, volume=volume))
    assert (controlled.model_control, controlled.watch_repository) == (True, False)
    assert (watching.model_control, watching.watch_repository) == (True, True)


def test_settings_of_single_models_are_a_file_that_the_service_takes_and_a_change_of_it_is_a_new_pod(
    tmp_path: Path,
) -> None:
    manifests = rendered(SEVERAL_MODELS)
    (text,) = of_kind(manifests, "ConfigMap")["data"].values()
    assert tomllib.loads(text) == {"models": SEVERAL_MODELS["models"]["settings"]}
    file = tmp_path / "settings.toml"
    file.write_text(text)
    tiny = load_settings({"settings": file, "repository": tmp_path}, environment={}).of_model("dat_tiny")
    assert (tiny.max_delay_ms, tiny.batch_buckets, tiny.top_k) == (2, (1, 8), 3)
    (name,) = of_kind(manifests, "ConfigMap")["data"]
    (mount,) = [each for each in container_of(manifests)["volumeMounts"] if each["name"] == "settings"]
    (volume,) = [each for each in pod_of(manifests)["volumes"] if each["name"] == "settings"]
    assert volume["configMap"]["name"] == of_kind(manifests, "ConfigMap")["metadata"]["name"]
    assert environment_of(manifests)["DAT_SETTINGS"] == f"{mount['mountPath']}/{name}"

    def mark(values: dict[str, Any]) -> str:
        template = of_kind(rendered(values), "Deployment")["spec"]["template"]
        return str(template["metadata"]["annotations"]["checksum/settings"])

    changed = {"models": {**SEVERAL_MODELS["models"], "settings": {"dat_tiny": {"max_delay_ms": 3}}}}
    assert mark(changed) != mark(SEVERAL_MODELS)


def test_keys_come_from_the_secret() -> None:
    (entry,) = [each for each in container_of(rendered(EXAMPLE))["env"] if each["name"] == "DAT_API_KEYS"]
    assert entry["valueFrom"] == {"secretKeyRef": {"name": "dat-keys", "key": "api-keys"}}


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"replica": 3}, "replica"),
        ({"settings": {"max_wait": 3}}, "max_wait"),
        ({"settings": {"port": 80}}, "port"),
        ({"service": {"port": 99999}}, "port"),
        ({"models": {"volume": {"nfs": {}, "emptyDir": {}}}}, "volume"),
        ({"ingress": {"enabled": True}}, "hosts"),
        ({"autoscaling": {"enabled": True, "minReplicas": 4, "maxReplicas": 2}}, "maxReplicas"),
        ({"autoscaling": {"enabled": True, "cpuUtilization": 0}}, "queuedImages"),
        ({"autoscaling": {"enabled": True}, "resources": {"requests": None, "limits": None}}, "resources.requests.cpu"),
        ({"podDisruptionBudget": {"maxUnavailable": "lots"}}, "maxUnavailable"),
        ({"models": {"names": ["a"], "default": "b"}}, "models.default b"),
        ({"models": {"names": ["a"]}, "settings": {"model": "a"}}, "settings.model"),
        ({"models": {"names": ["a,b"]}}, "names"),
        ({"models": {"watch": True}}, "models.volume"),
        ({"models": {"settings": {"a": {"port": 80}}}}, "port"),
        ({"models": {"control": True}, "ingress": {"enabled": True, "hosts": [{"host": "a.b"}]}}, "apiKeys.secretName"),
        ({"settings": {"model_control": True}}, "model_control"),
        ({"podLabels": {"app.kubernetes.io/instance": "other"}}, "podLabels"),
    ],
)
def test_values_that_make_no_sense_are_refused_by_name(values: dict[str, Any], complaint: str) -> None:
    ran = helm("template", "dat", str(CHART), values=values)
    assert ran.returncode != 0
    assert complaint in ran.stderr


def test_the_schema_knows_every_setting_but_those_the_chart_decides() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert schema["properties"]["settings"]["properties"].keys() == Settings.model_fields.keys() - CHARTS_OWN
    of_one = schema["properties"]["models"]["properties"]["settings"]["additionalProperties"]["properties"]
    assert of_one.keys() == set(OF_ONE_MODEL)


@pytest.mark.parametrize("name", ["alerts.yml", "rules.yml"])
def test_the_charts_rules_are_those_of_the_monitoring(name: str) -> None:
    rules = ROOT / "deploy/monitoring" / name
    assert (CHART / "files" / name).read_text() == rules.read_text()
    groups = of_kind(rendered(EXAMPLE), "PrometheusRule")["spec"]["groups"]
    assert [group for group in yaml.safe_load(rules.read_text())["groups"] if group not in groups] == []


def test_the_prometheus_operator_knows_every_field_of_its_resources() -> None:
    manifests = rendered(EXAMPLE)
    monitor = of_kind(manifests, "ServiceMonitor")["spec"]
    assert monitor.keys() == {"jobLabel", "selector", "endpoints"}
    assert monitor["selector"].keys() == {"matchLabels"}
    ports = {port["name"] for port in of_kind(manifests, "Service")["spec"]["ports"]}
    for endpoint in monitor["endpoints"]:
        assert endpoint.keys() == {"port", "path", "interval"}
        assert endpoint["port"] in ports
    spec = of_kind(manifests, "PrometheusRule")["spec"]
    assert spec.keys() == {"groups"}
    for group in spec["groups"]:
        assert {"name", "rules"} <= group.keys() <= {"name", "rules", "interval"}
        for rule in group["rules"]:
            assert ("record" in rule) != ("alert" in rule)
            assert rule.keys() <= {"record", "alert", "expr", "for", "labels", "annotations"}


@pytest.mark.skipif(not KSERVE_PYTHON.exists(), reason="KServe's environment is not installed: make test installs it")
def test_kserve_knows_every_field_of_its_examples() -> None:
    files = sorted(map(str, KSERVE.glob("*.yaml")))
    ran = subprocess.run(
        [KSERVE_PYTHON, "tests/deploy/kserve_models.py", *files], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert len(files) == 2
    assert json.loads(ran.stdout) == []


def test_the_kserve_runtime_is_a_pod_that_kubernetes_and_the_service_take() -> None:
    runtime = yaml.safe_load((KSERVE / "serving-runtime.yaml").read_text())
    service = yaml.safe_load((KSERVE / "inference-service.yaml").read_text())
    spec = runtime["spec"]
    pod = {"containers": spec["containers"], "volumes": spec["volumes"]}
    manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "runtime"}, "spec": pod}
    kubernetes_validate.validate(manifest, VERSIONS[-1], strict=True)
    model = service["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["modelFormat"]["name"] in {each["name"] for each in spec["supportedModelFormats"]}
    assert model["protocolVersion"] in spec["protocolVersions"]
    (container,) = spec["containers"]
    given = {each["name"]: each["value"] for each in [*container["env"], *model["env"]] if "value" in each}
    settings = settings_of(given)
    assert settings.model == (service["metadata"]["name"],)


def test_the_kserve_pods_variables_are_the_services_alone() -> None:
    service = yaml.safe_load((KSERVE / "inference-service.yaml").read_text())
    # Kubernetes would make DAT_TINY_PREDICTOR_SERVICE_HOST of the Service's name, and the server refuse to start
    assert f"{service['metadata']['name']}-predictor".upper().replace("-", "_").startswith(ENV_PREFIX)
    assert service["spec"]["predictor"]["enableServiceLinks"] is False


def test_the_kserve_pods_are_given_the_time_that_their_drain_takes() -> None:
    runtime = yaml.safe_load((KSERVE / "serving-runtime.yaml").read_text())
    service = yaml.safe_load((KSERVE / "inference-service.yaml").read_text())
    (container,) = runtime["spec"]["containers"]
    python, option, program = container["lifecycle"]["preStop"]["exec"]["command"]
    assert (python, option) == ("python", "-c")
    before_s = int(program.removeprefix("import time; time.sleep(").removesuffix(")"))
    drain_s = Settings.model_fields["drain_timeout_ms"].default / 1000
    assert "DAT_DRAIN_TIMEOUT_MS" not in {each["name"] for each in container["env"]}
    assert service["spec"]["predictor"]["terminationGracePeriodSeconds"] >= before_s + drain_s + 15


def test_grpc_has_a_port_where_it_is_asked_for() -> None:
    manifests = rendered({"grpc": {"port": 9001}})
    ports = {port["name"]: port for port in of_kind(manifests, "Service")["spec"]["ports"]}
    assert (ports["grpc"]["port"], ports["grpc"]["targetPort"]) == (9001, "grpc")
    pod = of_kind(manifests, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    assert {"name": "grpc", "containerPort": 8001} in pod["ports"]
    assert {"name": "DAT_GRPC_PORT", "value": "8001"} in pod["env"]
    (rule,) = of_kind(manifests, "NetworkPolicy")["spec"]["ingress"]
    assert [port["port"] for port in rule["ports"]] == ["http", "grpc"]
    assert "grpc" not in str(of_kind(rendered({}), "Deployment"))
