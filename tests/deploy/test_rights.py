"""The role of ECS' runs, enforced by moto: the main job needs no right in the bucket that it does not give."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3  # type: ignore[import-untyped]
import dagster as dg
import moto.settings
import pytest

from curation_assets.defs.main_job import MainJob
from curation_assets.workspace.workspace import Workspace
from curation_resources.errors import UserError
from tests.pipeline.workspaces import rows, subset_ids

POLICY = Path(__file__).parent.parent.parent / "deploy" / "ecs" / "iam" / "runs.json"
BUCKET = "my-bucket"
CONFIG = """\
corpus: {{landing: s3://my-bucket/traces}}
warehouse: s3://my-bucket/curation/warehouse
targets:
  - {{name: tiny, model: {model}, warmup: {{fraction: 0.5, min_pool: 4, max_steps: 1, batch_size: 2}}}}
scores:
  - {{name: grace, target: tiny, method: grace}}
subsets:
  - {{name: best, score: grace, budget: {{fraction: 0.5}}}}
engine: {{device: cpu}}
releases: {{policy: on_change}}
"""


def policy(without: str = "") -> dict[str, Any]:
    """What the role may do in the bucket, but for one action."""
    statements = [s for s in json.loads(POLICY.read_text())["Statement"] if s["Action"][0].startswith("s3:")]
    kept = [s | {"Action": [action for action in s["Action"] if action != without]} for s in statements]
    return {"Version": "2012-10-17", "Statement": [s for s in kept if s["Action"]]}


@pytest.fixture
def workspace(tmp_path: Path, tiny_model: Path, bucket: str) -> Iterator[Workspace]:
    """A configuration in the policy's bucket."""
    client = boto3.client("s3")
    client.create_bucket(Bucket=BUCKET)
    body = "".join(json.dumps(row) + "\n" for row in rows(8))
    client.put_object(Bucket=BUCKET, Key="traces/a.jsonl", Body=body.encode())
    (tmp_path / "curation.yaml").write_text(CONFIG.format(model=tiny_model))
    yield Workspace.load(tmp_path / "curation.yaml")
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
        for item in page.get("Contents", []):
            client.delete_object(Bucket=BUCKET, Key=item["Key"])
    client.delete_bucket(Bucket=BUCKET)


def become(document: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on, do only what a policy allows."""
    iam = boto3.client("iam")
    iam.create_user(UserName="runs")
    iam.put_user_policy(UserName="runs", PolicyName="runs", PolicyDocument=json.dumps(document))
    key = iam.create_access_key(UserName="runs")["AccessKey"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
    monkeypatch.setattr(moto.settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0)


@pytest.fixture(autouse=True)
def _nobody(bucket: str) -> Iterator[None]:
    yield
    iam = boto3.client("iam")
    iam.delete_user_policy(UserName="runs", PolicyName="runs")
    for key in iam.list_access_keys(UserName="runs")["AccessKeyMetadata"]:
        iam.delete_access_key(UserName="runs", AccessKeyId=key["AccessKeyId"])
    iam.delete_user(UserName="runs")


@pytest.mark.slow
def test_the_rights_are_enough(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as inside:
        become(policy(), inside)
        again = Workspace.load(workspace.config_file)
        with dg.DagsterInstance.ephemeral() as instance:
            summary = MainJob(again, instance).run()
        assert len(subset_ids(again)) == 4
        assert summary.releases == ["best@1"]
        with pytest.raises(UserError):
            again.storage_at(f"s3://{BUCKET}/traces").write("b.jsonl", b"{}")
        with pytest.raises(UserError):
            again.storage_at(f"s3://{BUCKET}/elsewhere").write("b.jsonl", b"{}")


@pytest.mark.slow
@pytest.mark.parametrize("action", ["s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:DeleteObject"])
def test_none_of_them_is_too_much(workspace: Workspace, action: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as inside:
        become(policy(without=action), inside)
        with dg.DagsterInstance.ephemeral() as instance, pytest.raises(Exception, match=r"(?i)denied|forbidden|403"):
            MainJob(Workspace.load(workspace.config_file), instance).run()
