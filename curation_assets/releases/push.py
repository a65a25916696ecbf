"""Push a complete release to a hub's dataset repository, a bucket or a folder."""

from __future__ import annotations

import glob
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curation_assets.releases.file_names import MANIFEST
from curation_assets.releases.verify import verify_release
from curation_resources.errors import UserError, in_a_line
from curation_resources.storage.files import FolderStorage, Storage, StoredFile, is_unfinished
from curation_resources.storage.object_store import ADDRESSES, is_object_address

if TYPE_CHECKING:
    from huggingface_hub import HfApi

HUB = "hf://datasets/"
CARRIERS = ("httpx", "httpcore", "requests", "urllib3")
"""Libraries whose errors mean that a server could not be reached, or that the connection broke."""


class PushError(UserError):
    """A release cannot be pushed."""


@dataclass(frozen=True)
class Packed:
    """A verified release, ready to be pushed.

    Attributes:
        name: name and number, such as `best@2`.
        storage: storage that holds it.
        place: its folder there.
        files: all files; the manifest comes last, so that a copy with a manifest is complete.
    """

    name: str
    storage: Storage
    place: str
    files: tuple[StoredFile, ...]

    @property
    def size(self) -> int:
        """Size in bytes."""
        return sum(file.size for file in self.files)

    def relative(self, file: StoredFile) -> str:
        """Return a file's path within the release."""
        return file.path.removeprefix(f"{self.place}/")


def pack(storage: Storage, place: str, manifest: dict[str, Any]) -> Packed:
    """Verify a release and return it ready to be pushed.

    Raises:
        PushError: it is damaged.
    """
    name = f"{manifest['subset']}@{manifest['number']}"
    problems = verify_release(storage, place)
    if problems:
        raise PushError(
            f"{name} is damaged ({problems[0].file} {problems[0].what}). It was not pushed; `curate verify` lists "
            "all problems."
        )
    files = [file for file in storage.walk(place) if not is_unfinished(file.path)]
    return Packed(name, storage, place, tuple(sorted(files, key=lambda file: (file.name == MANIFEST, file.path))))


def push_to_hub(packed: Packed, repository: str, *, private: bool, api: HfApi | None = None) -> str:
    """Replace the content of a hub's dataset repository by this release, as one commit tagged with its name.

    Args:
        packed: the release.
        repository: OWNER/NAME; it is created if it does not exist.
        private: whether a new repository is private.
        api: the hub; default: the one given by HF_ENDPOINT and HF_TOKEN.

    Returns:
        The commit's URL.

    Raises:
        PushError: the hub refuses, or cannot be reached.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    hub = api or huggingface_hub.HfApi()
    folder = packed.storage.local(packed.place)
    tag = packed.name.replace("@", "-")
    try:
        hub.create_repo(repository, repo_type="dataset", private=private, exist_ok=True)
        commit = hub.upload_folder(
            repo_id=repository,
            repo_type="dataset",
            folder_path=folder,
            commit_message=f"Release {packed.name}",
            # Only the verified files, and nothing else in the folder.
            allow_patterns=[glob.escape(packed.relative(file)) for file in packed.files],
            # Remove files of a previous release that this one does not have.
            delete_patterns=["*"],
        )
        if tag in {one.name for one in hub.list_repo_refs(repository, repo_type="dataset").tags}:
            hub.delete_tag(repository, repo_type="dataset", tag=tag)
        hub.create_tag(repository, repo_type="dataset", tag=tag, revision=commit.oid)
    except Exception as error:
        # The hub client may use any of several HTTP libraries.
        carried = type(error).__module__.partition(".")[0].startswith(CARRIERS)
        if not carried and not isinstance(error, (HfHubHTTPError, OSError, ValueError)):
            raise
        raise PushError(
            f"{packed.name} was not pushed to {repository}: {in_a_line(error)}. Check that HF_TOKEN has write access."
        ) from error
    return str(commit.commit_url)


def push_to_storage(packed: Packed, there: Storage, advance: Callable[[int], None]) -> int:
    """Copy a release into a bucket or folder, and return the number of files written, without those already there.

    Args:
        packed: the release.
        there: storage whose root becomes the release's folder.
        advance: called after every file.

    Raises:
        PushError: the destination has other content.
    """
    there.prepare()
    names = {packed.relative(file) for file in packed.files}
    strange = sorted(file.path for file in there.walk("") if file.path not in names and not is_unfinished(file.path))
    if strange:
        raise PushError(f"{there.place} contains other files ({strange[0]}). Name a new or empty place.")
    written = 0
    for file in packed.files:
        data, name = packed.storage.read(file.path), packed.relative(file)
        if there.exists(name):
            if there.read(name) != data:
                raise PushError(
                    f"{there.place} contains a different {name}, but a release never changes. Name another place."
                )
        else:
            there.write(name, data)
            written += 1
        advance(1)
    return written


def hub_repository(destination: str) -> str | None:
    """Return OWNER/NAME of a hub destination; None for a bucket or a folder.

    Raises:
        PushError: the address is not supported.
    """
    name = destination.removeprefix(HUB).strip("/")
    if destination.startswith(HUB) and name.count("/") == 1:
        return name
    if "://" in destination and not is_object_address(destination):
        raise PushError(f"{destination}: not a supported destination. Use {HUB}OWNER/NAME, {ADDRESSES}, or a folder.")
    return None


def folder_of(destination: str, packed: Packed) -> Path:
    """Return a destination that is a local folder.

    Raises:
        PushError: it is inside the release.
    """
    folder = Path(destination).expanduser().resolve()
    if isinstance(packed.storage, FolderStorage) and folder.is_relative_to(
        packed.storage.local(packed.place).resolve()
    ):
        raise PushError(f"{folder} is inside the release. Name another place.")
    return folder
