"""Secrets of the environment are in nothing that is written, kept or shown."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.models import write_tiny_model
from tests.pipeline.workspaces import rows, write_shard

ROOT = Path(__file__).parents[2]
SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIAKEPTFROMFILES0001",
    "AWS_SECRET_ACCESS_KEY": "kept/From+Every-File9",
    "AWS_SESSION_TOKEN": "session-kept-from-every-file",
    "CURATION_WEBHOOK": "http://127.0.0.1:9/services/kept-from-every-file",
    "HF_TOKEN": "hf_keptFromEveryFile",
}
CONFIG = """\
corpus: {{landing: {bucket}/landing}}
warehouse: {bucket}/warehouse
targets: [{{name: tiny, model: ./model, warmup: none, signals: [step_gradients, likelihoods]}}]
scores: [{{name: grace, target: tiny, method: grace}}]
subsets: [{{name: best, score: grace, budget: {{fraction: 0.5}}}}]
alerts: {{webhook_variable: CURATION_WEBHOOK}}
engine: {{device: cpu}}
"""


def curate(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "curation_assets.cli", *words, "--config", str(folder / "curation.yaml")]
    own = os.environ | SECRETS | {"XDG_CACHE_HOME": str(folder / "cache"), "PYTHONPATH": str(ROOT)} | environment
    own.pop("DAGSTER_HOME", None)
    return subprocess.run(command, cwd=folder, env=own, capture_output=True, text=True, timeout=240, check=False)


def objects(bucket: str) -> dict[str, bytes]:
    """Everything in a bucket."""
    import boto3  # type: ignore[import-untyped]

    found = boto3.resource("s3").Bucket(bucket.removeprefix("s3://")).objects.all()
    return {item.key: item.get()["Body"].read() for item in found}


def told(place: str, data: bytes) -> list[str]:
    return [f"{place} holds {name}" for name, value in SECRETS.items() if value.encode() in data]


@pytest.mark.slow
def test_a_run_on_s3_keeps_its_secrets(tmp_path: Path, bucket: str) -> None:
    write_tiny_model(tmp_path / "model")
    write_shard(tmp_path / "a.jsonl", rows(8))
    import boto3

    boto3.client("s3").upload_file(str(tmp_path / "a.jsonl"), bucket.removeprefix("s3://"), "landing/a.jsonl")
    (tmp_path / "curation.yaml").write_text(CONFIG.format(bucket=bucket))
    said = [curate(tmp_path, "run"), curate(tmp_path, "release", "best"), curate(tmp_path, "doctor")]
    assert [done.returncode for done in said] == [0, 0, 0], [done.stderr for done in said]
    # What fails says more: a bucket that refuses, a server that is not there, a webhook that does not answer.
    nowhere = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    said += [curate(tmp_path, "run", **nowhere), curate(tmp_path, "test-alert")]
    (tmp_path / "model" / "model.safetensors").write_bytes(b"damaged")
    said.append(curate(tmp_path, "run"))
    assert all(done.returncode for done in said[3:])
    found = [line for done in said for line in told(f"output of {done.args[3]}", (done.stdout + done.stderr).encode())]
    found += [line for key, data in objects(bucket).items() for line in told(key, data)]
    # Dagster's runs, events and logs, our caches and copies.
    for path in tmp_path.rglob("*"):
        if path.is_file():
            found += told(str(path.relative_to(tmp_path)), path.read_bytes())
    assert found == []
    assert any("manifest.json" in key for key in objects(bucket))
    assert list((tmp_path / ".dagster").rglob("*.db"))
