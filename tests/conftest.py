"""Fixtures that every test can use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before anything imports tokenizers or transformers: no hub, no forking trouble.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# The models are tiny: threads that wait for one another cost more than they do, most of all on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.models import write_tiny_model
from tests.s3 import bucket, s3_server

__all__ = ["bucket", "s3_server"]

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random Qwen2 model and its tokenizer."""
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real reasoning data; the test is skipped where it is absent."""
    folder = Path(os.environ.get("CURATION_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "gsm8k").is_dir():
        pytest.skip(f"no real data in {folder}: set CURATION_TEST_DATA")
    return folder


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test writes to the user's cache, or reads the user's configuration."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CURATION_CONFIG", raising=False)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
