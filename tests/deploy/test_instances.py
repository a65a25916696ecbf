"""The example files of deploy/: loaded by what reads them, and tried where a server for it is at hand."""

from __future__ import annotations

from pathlib import Path

import boto3  # type: ignore[import-untyped]
import dagster as dg
import pytest
import yaml  # type: ignore[import-untyped]
from dagster._core.errors import DagsterInvalidConfigError
from dagster._core.instance.config import dagster_instance_config

from curation_assets.config_file import load_settings

DEPLOY = Path(__file__).parent.parent / "deploy"


@pytest.mark.parametrize("file", sorted(DEPLOY.glob("curation*.yaml")), ids=lambda file: file.name)
def test_configurations_load(file: Path) -> None:
    assert load_settings(file).targets


def test_a_landing_area_and_a_warehouse_of_one_bucket_lie_apart() -> None:
    settings = load_settings(DEPLOY / "curation.s3.yaml")
    assert not f"{settings.warehouse}/".startswith(f"{settings.corpus.landing}/")


@pytest.mark.parametrize("damage", [False, True])
def test_an_instance_takes_the_configuration(tmp_path: Path, damage: bool) -> None:
    text = (DEPLOY / "dagster.s3.yaml").read_text()
    (tmp_path / "dagster.yaml").write_text(text.replace("run_monitoring:", "run_monitor:") if damage else text)
    if damage:
        with pytest.raises(DagsterInvalidConfigError, match="run_monitor"):
            dagster_instance_config(str(tmp_path))
    else:
        config, _ = dagster_instance_config(str(tmp_path))
        assert config["compute_logs"]["class"] == "S3ComputeLogManager"


def test_what_steps_print_is_kept_in_the_bucket(
    tmp_path: Path, bucket: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = yaml.safe_load((DEPLOY / "dagster.s3.yaml").read_text())
    name = bucket.removeprefix("s3://")
    config["compute_logs"]["config"] |= {"bucket": name, "endpoint_url": s3_server, "local_dir": str(tmp_path / "logs")}
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))

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
