"""`curate push`: to a hub, a bucket and a folder; nothing without --go, nothing that is damaged, nothing twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from typer.testing import CliRunner

from curation_assets.cli.app import app
from curation_assets.releases.export import release_frame
from curation_assets.releases.push import PushError, hub_repository, pack, push_to_hub, push_to_storage
from curation_assets.releases.verify import verify_release
from curation_assets.workspace.workspace import Workspace
from curation_resources.storage.files import FolderStorage
from tests.pipeline.workspaces import make_workspace, release_folder, release_subset, rows, run
from tests.releases.hub_server import Hub, hub_server

PLACE = "releases/best/1"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Workspace:
    workspace = make_workspace(tmp_path_factory.mktemp("pushed"), tiny_model, {"a.jsonl": rows(8)})
    run(workspace)
    release_subset(workspace)
    return workspace


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A stand-in, which is reached although nothing else is."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with hub_server() as started:
        yield started


def curate(workspace: Workspace, *words: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, [*words, "--config", str(workspace.config_file)])
    assert done.exit_code == code, done.output
    return " ".join((done.output + done.stderr).split())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_hub_holds_the_release_and_nothing_else(made: Workspace, hub: Hub) -> None:
    storage = made.warehouse.storage
    packed = pack(storage, PLACE, release_frame(storage, PLACE)[1])
    api = HfApi(endpoint=hub.url, token=hub.token)
    address = push_to_hub(packed, "me/best", private=True, api=api)
    assert address.startswith(f"{hub.url}/datasets/me/best/commit/")
    repository = hub.repositories["me/best"]
    assert repository["private"] is True
    assert repository["commits"] == ["Release best@1"]
    assert repository["tags"] == ["best-1"]
    assert repository["files"] == contents(release_folder(made))
    # What a former release left goes.
    repository["files"]["data/old.parquet"] = b"old"
    push_to_hub(packed, "me/best", private=True, api=api)
    assert "data/old.parquet" not in repository["files"]
    # The tag is of the last commit, and there is one of it.
    assert repository["tags"] == ["best-1"]


def test_whoever_may_not_write_is_told(made: Workspace, hub: Hub) -> None:
    storage = made.warehouse.storage
    packed = pack(storage, PLACE, release_frame(storage, PLACE)[1])
    api = HfApi(endpoint=hub.url, token="wrong")
    with pytest.raises(PushError, match=r"was not pushed to me/best: .*401.*Check that HF_TOKEN has write access"):
        push_to_hub(packed, "me/best", private=True, api=api)
    assert hub.repositories == {}


def test_nothing_is_done_without_go(made: Workspace, tmp_path: Path) -> None:
    there = tmp_path / "there"
    said = curate(made, "push", "best@1", str(there))
    assert "pass --go to push" in said
    assert "manifest.json" in said
    assert not there.exists()
    assert "private" in curate(made, "push", "best", "hf://datasets/me/best")


def test_a_folder_holds_a_copy_that_is_whole(made: Workspace, tmp_path: Path) -> None:
    there = tmp_path / "there"
    assert "files written" in curate(made, "push", "best@1", str(there), "--go")
    assert contents(there) == contents(release_folder(made))
    assert verify_release(FolderStorage(tmp_path), "there") == []
    # Again, and after a push that was interrupted.
    (there / "manifest.json").unlink()
    assert ": 1 of " in curate(made, "push", "best@1", str(there), "--go")
    (there / "README.md").write_text("mine")
    assert "contains a different README.md" in curate(made, "push", "best@1", str(there), "--go", code=1)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    assert "contains other files (notes.txt)" in curate(made, "push", "best@1", str(tmp_path / "other"), "--go", code=1)


def test_a_bucket_holds_a_copy_that_is_whole(made: Workspace, bucket: str, tmp_path: Path) -> None:
    storage = made.warehouse.storage
    packed = pack(storage, PLACE, release_frame(storage, PLACE)[1])
    there = made.storage_at(f"{bucket}/copy")
    assert push_to_storage(packed, there, lambda _: None) == len(packed.files)
    assert push_to_storage(packed, there, lambda _: None) == 0
    assert verify_release(made.storage_at(bucket), "copy") == []


def test_what_is_damaged_is_brought_nowhere(made: Workspace, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(release_folder(made), copy)
    (copy / "README.md").write_text("other")
    said = curate(made, "push", str(copy), str(tmp_path / "there"), "--go", code=1)
    assert "is damaged (" in said
    assert not (tmp_path / "there").exists()


def test_destinations() -> None:
    assert hub_repository("hf://datasets/me/best/") == "me/best"
    assert hub_repository("s3://bucket/me") is None
