"""deploy/kubernetes: keys against the chart's, pods against Kubernetes' schemas, runs as the launcher makes them."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import kubernetes  # type: ignore[import-untyped]
import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml  # type: ignore[import-untyped]
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.instance.config import dagster_instance_config
from dagster._core.launcher import LaunchRunContext
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster_k8s import K8sRunLauncher
from dagster_k8s.job import get_user_defined_k8s_config

from curation_assets.config.config_file import load_settings
from curation_assets.defs.placement import run_tags
from tests.deploy import chart

DEPLOY = Path(__file__).parent.parent.parent / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
ENVIRONMENT = {
    "DAGSTER_HOME": "/var/lib/dagster",
    "DAGSTER_K8S_INSTANCE_CONFIG_MAP": "curation-dagster-instance",
    "DAGSTER_K8S_PG_PASSWORD_SECRET": "curation-postgres",
    "DAGSTER_K8S_PIPELINE_RUN_ENV_CONFIGMAP": "curation-dagster-pipeline-env",
}
KUBECONFIG = """\
apiVersion: v1
kind: Config
clusters: [{name: none, cluster: {server: "http://127.0.0.1:1"}}]
contexts: [{name: none, context: {cluster: none, user: none}}]
users: [{name: none, user: {}}]
current-context: none
"""


def valid(manifest: dict[str, Any]) -> None:
    kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


@pytest.fixture
def values() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((KUBERNETES / "values.yaml").read_text())
    return loaded


def test_the_chart_has_every_key(values: dict[str, Any]) -> None:
    assert list(chart.unknown(values)) == []


@pytest.mark.parametrize("path", ["dagsterDaemon.runMonitor", "dagster-user-deployments.deployments.environment"])
def test_a_key_that_the_chart_lacks_is_found(values: dict[str, Any], path: str) -> None:
    changed = copy.deepcopy(values)
    *above, key = path.split(".")
    place: Any = changed
    for name in above:
        place = place[name]
    (place[0] if isinstance(place, list) else place)[key] = {}
    assert list(chart.unknown(changed)) == [path]


def test_the_chart_is_that_of_the_packages() -> None:
    # dagster-k8s 0.29.27 belongs to dagster 1.13.27, and so does the chart of that name.
    text = (KUBERNETES / "values.yaml").read_text() + (DEPLOY.parent / "docs" / "deploying.md").read_text()
    project = (DEPLOY.parent / "pyproject.toml").read_text()
    (bound,) = re.findall(r'"dagster>=([\d.]+),', project)
    assert set(re.findall(r"--version ([\d.]+)", text)) == {bound}


def test_dagster_takes_the_instance_that_the_chart_writes(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(chart.instance(values)))
    config, _ = dagster_instance_config(str(tmp_path))
    assert config["run_monitoring"]["free_slots_after_run_end_seconds"] == 60
    assert config["concurrency"]["pools"]["default_limit"] == 1


def test_the_pods_of_the_servers_are_valid(values: dict[str, Any]) -> None:
    made = list(chart.deployments(values))
    assert len(made) == 3
    for manifest in made:
        valid(manifest)
        assert "nvidia.com/gpu" not in str(manifest)


@pytest.fixture
def launcher(values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[K8sRunLauncher]:
    """The launcher of the values, whose jobs are kept in `jobs` in place of a cluster."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "kubeconfig").write_text(KUBECONFIG)
    config = chart.launcher(values) | {"load_incluster_config": False, "kubeconfig_file": str(tmp_path / "kubeconfig")}
    instance = {
        "telemetry": {"enabled": False},
        "run_launcher": {"module": "dagster_k8s", "class": "K8sRunLauncher", "config": config},
    }
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(instance))
    with dg.DagsterInstance.from_config(str(tmp_path)) as opened:
        made = opened.run_launcher
        assert isinstance(made, K8sRunLauncher)
        yield made


def launched(launcher: K8sRunLauncher, values: dict[str, Any], tags: dict[str, str]) -> dict[str, Any]:
    """The job that the launcher asks a cluster for, as JSON."""
    deployment = values["dagster-user-deployments"]["deployments"][0]
    origin = JobPythonOrigin(
        "__ASSET_JOB",
        RepositoryPythonOrigin(
            executable_path="python",
            code_pointer=ModuleCodePointer("curation_assets.definitions", "defs"),
            container_image=chart.image(deployment["image"]),
            container_context=chart.container_context(deployment),
        ),
    )

    @dg.job(name="__ASSET_JOB")
    def job() -> None:
        pass

    instance = launcher._instance
    run = instance.create_run_for_job(job, tags=tags, job_code_origin=origin)
    asked: list[Any] = []

    class Batch:
        def create_namespaced_job(self, body: Any, namespace: str, **_: Any) -> None:
            assert namespace == "curation"
            asked.append(body)

    launcher._api_client.batch_api = Batch()
    launcher.launch_run(LaunchRunContext(dagster_run=run, workspace=None))
    (body,) = asked
    made: dict[str, Any] = kubernetes.client.ApiClient().sanitize_for_serialization(body)
    return made


def mounted(pod: dict[str, Any]) -> None:
    """Every mount has its volume, and no two have the same name or place."""
    names = [volume["name"] for volume in pod["volumes"]]
    assert len(names) == len(set(names))
    mounts = pod["containers"][0]["volumeMounts"]
    assert {mount["name"] for mount in mounts} <= set(names)
    assert len({mount["mountPath"] for mount in mounts}) == len(mounts)


def test_a_run_that_needs_no_device_gets_none(launcher: K8sRunLauncher, values: dict[str, Any]) -> None:
    job = launched(launcher, values, {})
    valid(job)
    pod = job["spec"]["template"]["spec"]
    mounted(pod)
    assert pod["containers"][0]["image"].endswith(":cpu")
    assert pod["containers"][0]["resources"]["requests"] == {"cpu": "1", "memory": "4Gi"}
    assert "nvidia.com/gpu" not in str(job)


@pytest.mark.parametrize("file", ["curation.yaml", "curation.ray.yaml"])
def test_a_run_that_needs_a_device_gets_a_gpu(launcher: K8sRunLauncher, values: dict[str, Any], file: str) -> None:
    job = launched(launcher, values, run_tags(load_settings(KUBERNETES / file).engine))
    valid(job)
    pod = job["spec"]["template"]["spec"]
    mounted(pod)
    (container,) = pod["containers"]
    assert container["image"].endswith(":cuda")
    assert container["resources"]["limits"] == {"memory": "96Gi", "nvidia.com/gpu": "1"}
    assert container["resources"]["requests"]["cpu"] == "8"
    assert pod["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert pod["securityContext"]["runAsNonRoot"]
    names = {variable["name"] for variable in container["env"]}
    assert names >= {"CURATION_CONFIG", "DAGSTER_HOME", "XDG_CACHE_HOME", "RAY_AUTH_TOKEN"}


@pytest.mark.parametrize("damage", [{"container_configuration": {}}, {"pod_spec_config": {"node_selectors": {}}}])
def test_a_tag_that_kubernetes_does_not_know_is_found(damage: dict[str, Any]) -> None:
    tags = run_tags(load_settings(KUBERNETES / "curation.yaml").engine.model_copy(update={"run_tags": {K8S: damage}}))
    with pytest.raises(Exception, match=r"container_configuration|node_selectors"):
        get_user_defined_k8s_config(tags)


K8S = "dagster-k8s/config"


def test_the_claims_are_valid_and_the_pods_use_them(values: dict[str, Any]) -> None:
    claims = list(yaml.safe_load_all((KUBERNETES / "volumes.yaml").read_text()))
    for claim in claims:
        valid(claim)
    text = (KUBERNETES / "values.yaml").read_text() + (KUBERNETES / "raycluster.yaml").read_text()
    assert set(re.findall(r"claimName: ([\w-]+)", text)) == {claim["metadata"]["name"] for claim in claims}


GROUP = {"rayStartParams", "template"}
RAY_KEYS = {
    "spec": {"rayVersion", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec", "workerGroupSpecs"},
    "autoscalerOptions": {"upscalingMode", "idleTimeoutSeconds", "resources", "image", "imagePullPolicy", "env"},
    "headGroupSpec": {"serviceType", "headService", "enableIngress", *GROUP},
    "workerGroupSpecs": {"groupName", "replicas", "minReplicas", "maxReplicas", "numOfHosts", *GROUP},
}
"""Keys of KubeRay's RayCluster, ray.io/v1."""


def test_the_ray_cluster_has_known_keys_and_valid_pods() -> None:
    cluster = yaml.safe_load((KUBERNETES / "raycluster.yaml").read_text())
    assert (cluster["apiVersion"], cluster["kind"]) == ("ray.io/v1", "RayCluster")
    spec = cluster["spec"]
    assert set(spec) <= RAY_KEYS["spec"]
    assert set(spec["autoscalerOptions"]) <= RAY_KEYS["autoscalerOptions"]
    (workers,) = spec["workerGroupSpecs"]
    assert set(spec["headGroupSpec"]) <= RAY_KEYS["headGroupSpec"]
    assert set(workers) <= RAY_KEYS["workerGroupSpecs"]
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    for group in (spec["headGroupSpec"], workers):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        valid({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "node"}, "spec": group["template"]["spec"]})
    head, worker = (group["template"]["spec"]["containers"][0] for group in (spec["headGroupSpec"], workers))
    assert "nvidia.com/gpu" not in str(head["resources"])
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == "1"
    mounted(workers["template"]["spec"])
    for variables in (head["env"], worker["env"], spec["autoscalerOptions"]["env"]):
        assert {"name": "RAY_AUTH_MODE", "value": "token"} in variables
        assert "curation-ray" in str(variables)


def test_every_node_and_run_has_the_same_ray(values: dict[str, Any]) -> None:
    cluster = yaml.safe_load((KUBERNETES / "raycluster.yaml").read_text())
    (version,) = re.findall(r"ARG RAY_VERSION=(\S+)", (DEPLOY / "Dockerfile").read_text())
    assert cluster["spec"]["rayVersion"] == version
    settings = load_settings(KUBERNETES / "curation.ray.yaml")
    # KubeRay's name for the service of a cluster's head.
    assert settings.engine.address == f"ray://{cluster['metadata']['name']}-head-svc:10001"
    images = set(re.findall(r"image: (\S+)", (KUBERNETES / "raycluster.yaml").read_text()))
    repository = values["dagsterWebserver"]["image"]["repository"]
    assert images == {f"{repository}:cpu", f"{repository}:cuda"}
