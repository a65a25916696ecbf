"""Dagster's resource for S3 as the source of storage's credentials."""

from __future__ import annotations

import os
from pathlib import Path

import dagster as dg
import pytest
from dagster_aws.s3 import S3Resource

from curation_assets.defs.object_storage import storage_options
from curation_assets.workspace.workspace import Workspace
from curation_resources.errors import UserError

CONFIG = """\
corpus: {{landing: {bucket}/traces}}
warehouse: {bucket}/warehouse
targets: [{{name: tiny, model: ./model}}]
s3: {{profile: nobody-made-it}}
"""


def test_storage_uses_the_resources_keys_and_endpoint(
    tmp_path: Path, bucket: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "curation.yaml"
    config.write_text(CONFIG.format(bucket=bucket))
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MY_SECRET", "top secret")
    with pytest.raises(UserError, match=r"nobody-made-it.*check s3\.profile"):
        Workspace.load(config)
    resource = S3Resource(
        endpoint_url=s3_server,
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key=dg.EnvVar("MY_SECRET"),
    )
    options = storage_options(resource)
    assert "top secret" not in repr(options)
    assert "top secret" not in repr(options.keys)
    workspace = Workspace.load(config, options)
    workspace.warehouse.storage.write("a/b", b"1")
    assert Workspace.load(config, options).warehouse.storage.read("a/b") == b"1"
    assert "top secret" not in repr(workspace)
    assert workspace.landing.files() == []


def test_settings_that_storage_does_not_support_are_refused() -> None:
    with pytest.raises(UserError, match="does not support"):
        storage_options(S3Resource(use_unsigned_session=True))
