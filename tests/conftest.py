"""Fixtures that every test can use."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Before anything imports tokenizers or transformers: no hub, no forking trouble.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# The models are tiny: threads that wait for one another cost more than they do, most of all on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests import memory_storage, plots_once  # first: before anything imports the functions that draw
from tests.azurite import azurite, container
from tests.models import write_tiny_model
from tests.pipeline import workspaces
from tests.s3 import bucket, s3_server

__all__ = ["azurite", "bucket", "container", "s3_server"]

ROOT = Path(__file__).parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    """The tests of the pipeline elsewhere.

    `--storage s3`: with landing area and warehouse in a bucket (moto's server). `--engine ray`: measured by workers of
    a cluster on this machine.
    """
    parser.addoption("--storage", choices=("folder", "s3"), default="folder", help="where tests/pipeline keeps files")
    parser.addoption("--engine", choices=("local", "ray"), default="local", help="what tests/pipeline measures with")


ALONE = "tests/benchmarks/test_benchmarks.py"
"""File whose tests share no fixture, so that any process may run each of them."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep a file's tests, and with them its fixtures, in one process."""
    from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]

    class ByFile(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return nodeid if nodeid.startswith(ALONE) else str(super()._split_scope(nodeid))

    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run files with slow tests first: with one file at a time in each process, none is left over at the end."""
    slow: dict[str, int] = {}
    for item in items:
        weight = 20 * (item.get_closest_marker("slow") is not None) + 100 * ("daemon" in item.nodeid)
        slow[str(item.path)] = slow.get(str(item.path), 0) + 1 + weight
    items.sort(key=lambda item: -slow[str(item.path)])


def pytest_configure() -> None:
    """Have instances in memory do less work."""
    memory_storage.lighten()


def pytest_collection_finish() -> None:
    """Collect garbage less often, and leave out what is imported: a million objects that stay."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


@pytest.fixture
def fresh_plots() -> Iterator[None]:
    """Draw every plot, also those that were drawn before."""
    with plots_once.all_drawn():
        yield


@pytest.fixture(autouse=True)
def _storage(request: pytest.FixtureRequest) -> Iterator[None]:
    """The place that `--storage` names, for tests of the pipeline."""
    asked = request.config.getoption("--storage") == "s3" and (ROOT / "tests" / "pipeline") in request.path.parents
    if asked and (marker := request.node.get_closest_marker("folder_only")):
        pytest.skip(f"not on S3: {marker.args[0]}")
    workspaces.use_bucket(request.getfixturevalue("bucket") if asked else None)
    yield
    workspaces.use_bucket(None)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Any]:
    """The module ray, connected to a cluster of three CPUs on this machine."""
    ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
    ray.init(address="local", num_cpus=3, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
    yield ray
    ray.shutdown()


@pytest.fixture(autouse=True)
def _engine(request: pytest.FixtureRequest) -> Iterator[None]:
    """The engine that `--engine` names, for tests of the pipeline."""
    asked = request.config.getoption("--engine") == "ray" and (ROOT / "tests" / "pipeline") in request.path.parents
    if asked and (marker := request.node.get_closest_marker("local_only")):
        pytest.skip(f"not on Ray: {marker.args[0]}")
    if asked:
        request.getfixturevalue("ray_cluster")
    workspaces.use_engine("ray" if asked else "local")
    yield
    workspaces.use_engine("local")


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


@pytest.fixture(scope="session")
def real_model() -> Path:
    """The folder of SmolLM2-135M-Instruct."""
    from tests.real_model import NoRealModelError
    from tests.real_model import real_model as made

    try:
        return made()
    except NoRealModelError as error:
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test writes to the user's cache, or reads the user's configuration."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CURATION_CONFIG", raising=False)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
