"""Every dagster.yaml and curation.yaml of deploy/: loaded by what reads them, and tried where a server is at hand."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import boto3  # type: ignore[import-untyped]
import dagster as dg
import pytest
import yaml  # type: ignore[import-untyped]
from dagster._config import process_config, resolve_to_config_type
from dagster._core.errors import DagsterInvalidConfigError
from dagster._core.instance.config import dagster_instance_config

from curation_assets.config.config_file import load_settings
from tests.deploy import chart

ROOT = Path(__file__).parent.parent.parent
DEPLOY = ROOT / "deploy"
INSTANCES = [*sorted(DEPLOY.rglob("dagster*.yaml")), DEPLOY / "kubernetes" / "values.yaml"]
ENVIRONMENT = {
    "DAGSTER_PG_USERNAME": "curation",
    "DAGSTER_PG_PASSWORD": "not-a-secret",
    "DAGSTER_PG_HOST": "127.0.0.1",
    "DAGSTER_PG_DB": "curation",
    "DAGSTER_PG_PORT": "5432",
    "CURATION_BUCKET": "curation",
    "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
    "AWS_DEFAULT_REGION": "us-east-1",
    "DAGSTER_HOME": "/var/lib/dagster",
    "DAGSTER_K8S_INSTANCE_CONFIG_MAP": "instance",
    "DAGSTER_K8S_PG_PASSWORD_SECRET": "curation-postgres",
    "DAGSTER_K8S_PIPELINE_RUN_ENV_CONFIGMAP": "environment",
}


def named(file: Path) -> str:
    return file.relative_to(DEPLOY).as_posix()


def settings_of(file: Path) -> dict[str, Any]:
    """The content of a dagster.yaml, or what the chart makes of values."""
    loaded: dict[str, Any] = yaml.safe_load(file.read_text())
    return chart.instance(loaded) if file.name == "values.yaml" else loaded


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("file", sorted(DEPLOY.rglob("curation*.yaml")), ids=named)
def test_configurations_load(file: Path) -> None:
    assert load_settings(file).targets


@pytest.mark.parametrize("file", sorted(DEPLOY.rglob("curation*.yaml")), ids=named)
def test_a_landing_area_and_a_warehouse_lie_apart(file: Path) -> None:
    settings = load_settings(file)
    assert not f"{settings.warehouse}/".startswith(f"{settings.corpus.landing}/")


@pytest.mark.parametrize("damage", [False, True])
@pytest.mark.parametrize("file", INSTANCES, ids=named)
def test_an_instance_takes_the_configuration(file: Path, tmp_path: Path, damage: bool) -> None:
    settings = settings_of(file)
    if damage:
        settings["run_monitor"] = settings.pop("run_monitoring")
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(settings))
    if damage:
        with pytest.raises(DagsterInvalidConfigError, match="run_monitor"):
            dagster_instance_config(str(tmp_path))
        return
    dagster_instance_config(str(tmp_path))
    for section in settings.values():
        if isinstance(section, dict) and "class" in section:
            made = getattr(importlib.import_module(section["module"]), section["class"])
            checked = process_config(resolve_to_config_type(made.config_type()), section["config"])
            assert checked.success, checked.errors


@pytest.mark.parametrize("file", INSTANCES, ids=named)
def test_what_every_instance_says(file: Path) -> None:
    settings = settings_of(file)
    own = yaml.safe_load((ROOT / "curation_assets" / "defs" / "templates" / "dagster.yaml").read_text())
    for section in ("concurrency", "freshness", "nux", "telemetry"):
        assert settings[section] == own[section], section
    assert settings["run_monitoring"]["enabled"]
    assert settings["run_monitoring"]["free_slots_after_run_end_seconds"] == 60
    assert settings["run_retries"]["max_retries"] == 2


def test_that_of_one_machine_is_what_curate_writes() -> None:
    template = ROOT / "curation_assets" / "defs" / "templates" / "dagster.yaml"
    assert (DEPLOY / "dagster.yaml").read_bytes() == template.read_bytes()


def test_postgresql_is_named_alike_everywhere() -> None:
    # tests/deploy/test_postgres.py runs it with compose's section.
    compose, ecs = (yaml.safe_load((DEPLOY / name / "dagster.yaml").read_text()) for name in ("compose", "ecs"))
    assert compose["storage"] == ecs["storage"]
    (chart_storage,) = {
        yaml.safe_dump(section["config"]["postgres_db"])
        for key, section in settings_of(DEPLOY / "kubernetes" / "values.yaml").items()
        if key.endswith("_storage")
    }
    assert yaml.safe_load(chart_storage)["scheme"] == compose["storage"]["postgres"]["postgres_db"]["scheme"]


@pytest.mark.parametrize("name", ["compose", "ecs"])
def test_the_workspace_has_one_code_server(name: str) -> None:
    (entry,) = yaml.safe_load((DEPLOY / name / "workspace.yaml").read_text())["load_from"]
    assert entry == {"grpc_server": {"host": {"env": "CODE_SERVER_HOST"}, "port": 4000, "location_name": "curation"}}


def test_what_steps_print_is_kept_in_the_bucket(
    tmp_path: Path, bucket: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = yaml.safe_load((DEPLOY / "dagster.s3.yaml").read_text())
    name = bucket.removeprefix("s3://")
    config["compute_logs"]["config"] |= {"bucket": name, "endpoint_url": s3_server, "local_dir": str(tmp_path / "logs")}
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)

    @dg.op
    def speak() -> None:
        print("said by a step")

    @dg.job
    def spoken() -> None:
        speak()

    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert spoken.execute_in_process(instance=instance).success
    client = boto3.client("s3")
    keys = [item["Key"] for item in client.list_objects_v2(Bucket=name, Prefix="curation/logs/").get("Contents", [])]
    outputs = [client.get_object(Bucket=name, Key=key)["Body"].read() for key in keys if key.endswith(".out")]
    assert any(b"said by a step" in output for output in outputs)
