"""Bringing a release elsewhere, whole: a dataset repository on a hub, a bucket, a folder."""

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
from curation_resources.storage.s3 import SCHEME

if TYPE_CHECKING:
    from huggingface_hub import HfApi

HUB = "hf://datasets/"
CARRIERS = ("httpx", "httpcore", "requests", "urllib3")
"""Libraries whose errors say that a server was not reached, or broke off."""


class PushError(UserError):
    """A release cannot be brought there."""


@dataclass(frozen=True)
class Packed:
    """A release that is whole and may leave.

    Attributes:
        name: as `best@2`.
        storage: where it lies.
        place: its folder there.
        files: all of it, the manifest last: with it a copy is whole.
    """

    name: str
    storage: Storage
    place: str
    files: tuple[StoredFile, ...]

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(file.size for file in self.files)

    def relative(self, file: StoredFile) -> str:
        """A file's path in the release."""
        return file.path.removeprefix(f"{self.place}/")


def pack(storage: Storage, place: str, manifest: dict[str, Any]) -> Packed:
    """A release to be brought elsewhere.

    Raises:
        PushError: it is not as it says.
    """
    name = f"{manifest['subset']}@{manifest['number']}"
    problems = verify_release(storage, place)
    if problems:
        raise PushError(
            f"{name} is not as it says ({problems[0].file} {problems[0].what}): `curate verify` names all of it; what "
            "is damaged is brought nowhere"
        )
    files = [file for file in storage.walk(place) if not is_unfinished(file.path)]
    return Packed(name, storage, place, tuple(sorted(files, key=lambda file: (file.name == MANIFEST, file.path))))


def push_to_hub(packed: Packed, repository: str, *, private: bool, api: HfApi | None = None) -> str:
    """Make the hub's dataset repository hold this release and nothing else, as one commit with a tag of its name.

    Args:
        packed: the release.
        repository: OWNER/NAME; it is made if it is not there.
        private: of a repository that is made.
        api: the hub; default: the one that HF_ENDPOINT and HF_TOKEN name.

    Returns:
        The commit's address.

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
            # What was looked at, and nothing that lies beside it.
            allow_patterns=[glob.escape(packed.relative(file)) for file in packed.files],
            # What a former release had and this one has not.
            delete_patterns=["*"],
        )
        if tag in {one.name for one in hub.list_repo_refs(repository, repo_type="dataset").tags}:
            hub.delete_tag(repository, repo_type="dataset", tag=tag)
        hub.create_tag(repository, repo_type="dataset", tag=tag, revision=commit.oid)
    except Exception as error:
        # Which library carries its requests is the hub client's own business.
        carried = type(error).__module__.partition(".")[0].startswith(CARRIERS)
        if not carried and not isinstance(error, (HfHubHTTPError, OSError, ValueError)):
            raise
        raise PushError(
            f"{packed.name} was not brought to {repository}: {in_a_line(error)}: see that HF_TOKEN may write there"
        ) from error
    return str(commit.commit_url)


def push_to_storage(packed: Packed, there: Storage, advance: Callable[[int], None]) -> int:
    """Copy a release into a bucket or folder; gives how many files were written, those that were there not counted.

    Args:
        packed: the release.
        there: its root is to be the release's folder.
        advance: told of every file.

    Raises:
        PushError: something else lies there.
    """
    there.prepare()
    names = {packed.relative(file) for file in packed.files}
    strange = sorted(file.path for file in there.walk("") if file.path not in names and not is_unfinished(file.path))
    if strange:
        raise PushError(f"{there.place} holds something else ({strange[0]}): name a place of the release's own")
    written = 0
    for file in packed.files:
        data, name = packed.storage.read(file.path), packed.relative(file)
        if there.exists(name):
            if there.read(name) != data:
                raise PushError(f"{there.place} holds another {name}: a release never changes; name another place")
        else:
            there.write(name, data)
            written += 1
        advance(1)
    return written


def hub_repository(destination: str) -> str | None:
    """OWNER/NAME of a destination on a hub; None if it is a bucket or a folder.

    Raises:
        PushError: it is an address of another kind.
    """
    name = destination.removeprefix(HUB).strip("/")
    if destination.startswith(HUB) and name.count("/") == 1:
        return name
    if "://" in destination and not destination.startswith(SCHEME):
        raise PushError(f"{destination}: a release goes to {HUB}OWNER/NAME, {SCHEME}BUCKET/PREFIX or a folder")
    return None


def folder_of(destination: str, packed: Packed) -> Path:
    """A destination that is a folder of this machine.

    Raises:
        PushError: it lies inside the release.
    """
    folder = Path(destination).expanduser().resolve()
    if isinstance(packed.storage, FolderStorage) and folder.is_relative_to(
        packed.storage.local(packed.place).resolve()
    ):
        raise PushError(f"{folder} lies inside the release: name another place")
    return folder
