"""deploy/ecs: tasks against botocore's model of ECS and CloudFormation's rules, roles by IAM's actions, and runs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3  # type: ignore[import-untyped]
import botocore.session  # type: ignore[import-untyped]
import dagster as dg
import dagster_aws.ecs.launcher as ecs_launcher
import pytest
import yaml  # type: ignore[import-untyped]
from botocore.validate import ParamValidator  # type: ignore[import-untyped]
from cfnlint.api import lint_all  # type: ignore[import-untyped]
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.launcher import LaunchRunContext
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster_aws.ecs import EcsRunLauncher
from moto import mock_aws

from curation_assets.config.config_file import load_settings
from curation_assets.defs.placement import run_tags

ECS = Path(__file__).parent.parent.parent / "deploy" / "ecs"
TASKS = sorted((ECS / "tasks").glob("*.json"))
POLICIES = sorted((ECS / "iam").glob("*.json"))
REGION = "eu-central-1"


def by_name(files: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("file", files, ids=lambda file: file.stem)


def read(file: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(file.read_text())
    return loaded


def refused(operation: str, parameters: dict[str, Any]) -> str:
    """What botocore's model of ECS says against a request; empty: nothing."""
    shape = botocore.session.get_session().get_service_model("ecs").operation_model(operation).input_shape
    return str(ParamValidator().validate(parameters, shape).generate_report())


def linted(kind: str, properties: dict[str, Any]) -> list[str]:
    """Errors and warnings of CloudFormation's linter about a resource; what it only remarks is about templates."""
    template = {"Resources": {"One": {"Type": kind, "Properties": properties}}}
    return [str(match) for match in lint_all(json.dumps(template)) if not match.rule.id.startswith("I")]


FREE = {"Options", "Condition"}
"""Maps whose keys are no properties."""


def pascal(value: Any) -> Any:
    """Properties as CloudFormation writes them."""
    if isinstance(value, list):
        return [pascal(one) for one in value]
    if not isinstance(value, dict):
        return value
    named = {key[0].upper() + key[1:]: one for key, one in value.items()}
    renamed = {"EfsVolumeConfiguration": "EFSVolumeConfiguration", "FileSystemId": "FilesystemId", "Iam": "IAM"}
    return {renamed.get(key, key): one if key in FREE else pascal(one) for key, one in named.items()}


@by_name(TASKS)
def test_ecs_would_take_the_task(file: Path) -> None:
    task = read(file)
    assert refused("RegisterTaskDefinition", task) == ""
    assert linted("AWS::ECS::TaskDefinition", pascal(task)) == []
    (container,) = task["containerDefinitions"]
    # What is secret is named, and not said.
    assert not [one for one in container["environment"] if "PASSWORD" in one["name"]]
    assert {one["name"] for one in container["secrets"]} == {"DAGSTER_PG_USERNAME", "DAGSTER_PG_PASSWORD"}


def test_a_faulty_task_is_found() -> None:
    task = read(ECS / "tasks" / "run.json")
    assert "containerDefinition" in refused("RegisterTaskDefinition", task | {"containerDefinition": []})
    # Fargate has no such machine.
    assert linted("AWS::ECS::TaskDefinition", pascal(task | {"cpu": "4096", "memory": "1024"}))


def test_gpus_are_asked_for_where_they_are_and_nowhere_else() -> None:
    for file in TASKS:
        task = read(file)
        gpus = task["containerDefinitions"][0].get("resourceRequirements", [])
        assert (task["requiresCompatibilities"] == ["EC2"]) == bool(gpus), "Fargate has no GPUs"
        assert bool(gpus) == (file.stem == "run-gpu")
    settings = load_settings(ECS / "curation.yaml")
    assert settings.engine.run_tags["ecs/run_task_kwargs"]["taskDefinition"] == "curation-run-gpu"  # type: ignore[index]


@by_name(POLICIES)
def test_iam_would_take_the_policy(file: Path) -> None:
    policy = read(file)
    if file.stem == "trust":
        assert linted("AWS::IAM::Role", {"AssumeRolePolicyDocument": policy}) == []
        return
    assert linted("AWS::IAM::ManagedPolicy", {"PolicyDocument": policy}) == []
    for statement in policy["Statement"]:
        # Every action by name; everything only where IAM knows nothing narrower.
        assert not [action for action in statement["Action"] if "*" in action]
        if statement["Resource"] == "*":
            assert statement["Sid"] in {"RegistryLogin", "WhatCannotBeNarrowed"}


def test_an_action_that_there_is_not_is_found() -> None:
    policy = read(ECS / "iam" / "runs.json")
    policy["Statement"][0]["Action"] = ["s3:ListBuckett"]
    assert linted("AWS::IAM::ManagedPolicy", {"PolicyDocument": policy})


def test_files_name_one_another() -> None:
    tasks = [read(file) for file in TASKS]
    roles = {task[key].rsplit("/", 1)[1] for task in tasks for key in ("taskRoleArn", "executionRoleArn")}
    assert roles == {f"curation-{file.stem}" for file in POLICIES if file.stem != "trust"}
    dagster = yaml.safe_load((ECS / "dagster.yaml").read_text())
    used = {part["env"] for part in dagster["storage"]["postgres"]["postgres_db"].values() if isinstance(part, dict)}
    for task in tasks:
        (container,) = task["containerDefinitions"]
        assert used <= {one["name"] for one in (*container["environment"], *container["secrets"])}
    passed = next(s for s in read(ECS / "iam" / "servers.json")["Statement"] if s["Sid"] == "RolesOfRuns")["Resource"]
    runs = [task for task in tasks if task["family"].startswith("curation-run")]
    assert set(passed) == {task[key] for task in runs for key in ("taskRoleArn", "executionRoleArn")}
    launched = next(s for s in read(ECS / "iam" / "servers.json")["Statement"] if s["Sid"] == "LaunchRuns")["Resource"]
    assert {re.split("[/:]", arn)[-2] for arn in launched} == {task["family"] for task in runs}


@pytest.fixture
def launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EcsRunLauncher[Any]]:
    """The launcher of dagster.yaml against moto's ECS, which has the tasks; the daemon's own task is made up."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    settings = yaml.safe_load((ECS / "dagster.yaml").read_text())
    del settings["storage"], settings["compute_logs"]
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(settings))
    with mock_aws():
        client = boto3.client("ecs")
        client.create_cluster(clusterName="curation")
        for file in TASKS:
            client.register_task_definition(**read(file))
        own = {"launchType": "FARGATE", "attachments": [SUBNET]}
        monkeypatch.setattr(ecs_launcher, "get_current_ecs_task_metadata", lambda: Here("curation", "arn"))
        monkeypatch.setattr(ecs_launcher, "get_current_ecs_task", lambda *_: own)
        with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
            made = instance.run_launcher
            assert isinstance(made, EcsRunLauncher)
            yield made


SUBNET = {"type": "ElasticNetworkInterface", "details": [{"name": "subnetId", "value": "subnet-0123456789abcdef0"}]}


class Here:
    """What the daemon's task knows of itself."""

    def __init__(self, cluster: str, task_arn: str) -> None:
        self.cluster, self.task_arn = cluster, task_arn


def asked(launcher: EcsRunLauncher[Any], tags: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The RunTask request of a run with tags."""

    @dg.job
    def nothing() -> None:
        pass

    requests: list[dict[str, Any]] = []

    def run_task(**request: Any) -> dict[str, str]:
        requests.append(request)
        return {"taskArn": "arn:task", "clusterArn": "arn:cluster"}

    monkeypatch.setattr(launcher, "_run_task", run_task)
    pointer = ModuleCodePointer("curation_assets.definitions", "defs")
    origin = JobPythonOrigin("nothing", RepositoryPythonOrigin(executable_path="python", code_pointer=pointer))
    run = launcher._instance.create_run_for_job(nothing, tags=tags, job_code_origin=origin)
    launcher.launch_run(LaunchRunContext(dagster_run=run, workspace=None))
    (request,) = requests
    assert refused("RunTask", request) == ""
    return request


def test_a_run_that_needs_no_device_is_a_task_on_fargate(
    launcher: EcsRunLauncher[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    request = asked(launcher, {"curation/stage": "corpus"}, monkeypatch)
    assert request["launchType"] == "FARGATE"
    assert re.search(r"task-definition/curation-run:\d+$", request["taskDefinition"])
    assert {"key": "curation/stage", "value": "corpus"} in request["tags"]
    (override,) = request["overrides"]["containerOverrides"]
    assert override["name"] == "run"
    assert override["command"][:5] == ["python", "-m", "dagster", "api", "execute_run"]


def test_a_run_that_needs_a_device_is_a_task_on_gpu_instances(
    launcher: EcsRunLauncher[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tags = run_tags(load_settings(ECS / "curation.yaml").engine)
    request = asked(launcher, tags, monkeypatch)
    assert request["taskDefinition"] == "curation-run-gpu"
    assert request["capacityProviderStrategy"] == [{"capacityProvider": "curation-gpu", "weight": 1}]
    assert "launchType" not in request
    assert request["networkConfiguration"]["awsvpcConfiguration"]["subnets"] == ["subnet-0123456789abcdef0"]
    # The command of a run is put over that of a container of this name.
    containers = read(ECS / "tasks" / "run-gpu.json")["containerDefinitions"]
    assert [one["name"] for one in containers] == [one["name"] for one in request["overrides"]["containerOverrides"]]
