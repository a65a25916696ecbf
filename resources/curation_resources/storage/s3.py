"""A prefix of an S3 bucket as a storage: conditional puts instead of renames and locks.

S3 puts an object whole or not at all, refuses a put under `If-None-Match: *` where there is one, and under `If-Match`
where it is another one than expected. A folder has no such thing: it is whole once its last file is there, and who
makes it holds a claim meanwhile.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

import polars as pl

from curation_resources.storage.digests import CHUNK_BYTES, digest
from curation_resources.storage.files import CLAIM, Storage, StorageError, StoredFile, is_unfinished
from curation_resources.storage.ranges import RangeReader
from curation_resources.storage.read_cache import forget, one_look, remembered
from curation_resources.storage.s3_claim import Claim
from curation_resources.storage.s3_errors import NOT_THERE, REFUSED, UNCHANGED, broken_off, clear_errors, code_of
from curation_resources.storage.s3_polars import polars_access

SCHEME = "s3://"
SMALL = 2**20
"""Bytes of an answer that is worth remembering during one look."""

FOOTER = 64 * 2**10
"""Bytes at the end of a Parquet file that are read for its footer; more if it is longer."""

ATTEMPTS = 6


@dataclass(frozen=True)
class S3Options:
    """Options for reaching S3. Options that are not set come from the environment, as for every AWS tool.

    Credentials are never set here: they come from the environment, a profile or a role.

    Attributes:
        endpoint_url: another service than AWS.
        region: of the bucket.
        profile: a named profile of the AWS configuration.
        max_attempts: tries of a request that S3 throttles or fails, with growing pauses.
    """

    endpoint_url: str | None = None
    region: str | None = None
    profile: str | None = None
    max_attempts: int = ATTEMPTS


class S3Storage(Storage):
    """A prefix of a bucket.

    Args:
        uri: s3://bucket/prefix.
        options: how it is reached.
        cache: a folder of this machine for copies of what never changes.

    Raises:
        StorageError: the address names no bucket.
    """

    def __init__(self, uri: str, options: S3Options, cache: Path) -> None:
        parts = urlsplit(uri)
        if parts.scheme != "s3" or not parts.netloc or parts.query or parts.fragment:
            raise StorageError(f"{uri} is no address of a bucket: write s3://BUCKET/PREFIX")
        self.bucket = parts.netloc
        self.prefix = parts.path.strip("/")
        self.options = options
        self._cache = cache
        self._asker = (options, self.place)

    @property
    def at_once(self) -> int:
        """Requests take long and do not hinder one another."""
        return 16

    @property
    def place(self) -> str:
        """s3://bucket/prefix."""
        return f"{SCHEME}{self.bucket}/{self.prefix}".rstrip("/")

    @cached_property
    def client(self) -> Any:
        """The boto3 client, with the retry settings of Dagster's own S3Resource."""
        try:
            import boto3  # type: ignore[import-untyped]
            from botocore.config import Config  # type: ignore[import-untyped]  # noqa: PLC0415
        except ImportError as error:
            raise StorageError(f"{self.place} needs boto3 ({error}). Run: pip install 'curation-assets[s3]'") from error
        options = self.options
        with clear_errors(self.place):
            return boto3.session.Session(profile_name=options.profile).client(
                "s3",
                region_name=options.region,
                endpoint_url=options.endpoint_url,
                config=Config(retries={"max_attempts": options.max_attempts, "mode": "standard"}),
            )

    def key(self, path: str) -> str:
        """The object's key of a path."""
        return f"{self.prefix}/{path}".strip("/")

    def prepare(self) -> None:
        """See that the bucket can be listed."""
        with clear_errors(self.place):
            self.client.list_objects_v2(Bucket=self.bucket, Prefix=self.key(""), MaxKeys=1)

    def open(self, path: str) -> AbstractContextManager[BinaryIO]:
        """Read the object: one state of it."""
        return closing(cast(BinaryIO, io.BytesIO(self._get(path)[0])))

    def open_end(self, path: str) -> AbstractContextManager[BinaryIO]:
        """Read the object's end, as far as a Parquet footer reaches."""
        end = self._get(path, f"bytes=-{FOOTER}")[0]
        if len(end) >= 8 and end[-4:] == b"PAR1":
            footer = int.from_bytes(end[-8:-4], "little") + 8
            if footer > len(end):
                end = self._get(path, f"bytes=-{footer}")[0]
        return closing(cast(BinaryIO, io.BytesIO(end)))

    def _get(self, path: str, span: str | None = None, version: str | None = None) -> tuple[bytes, str]:
        """An object's bytes, or some of them, and its ETag."""
        question = (*self._asker, "get", path, span, version)
        return remembered(question, lambda: self._asked(path, span, version), lambda got: len(got[0]) <= SMALL)

    def _asked(self, path: str, span: str | None, version: str | None) -> tuple[bytes, str]:
        asked = {name: value for name, value in (("Range", span), ("IfMatch", version)) if value is not None}
        with clear_errors(self.shown(path)):
            try:
                found = self.client.get_object(Bucket=self.bucket, Key=self.key(path), **asked)
                return found["Body"].read(), found["ETag"]
            except self.client.exceptions.ClientError as error:
                if span is not None and code_of(error) in {"InvalidRange", "416"}:
                    return self._get(path)
                raise

    def write(self, path: str, data: bytes) -> None:
        """Put the object."""
        forget()
        with clear_errors(self.shown(path)):
            self.client.put_object(Bucket=self.bucket, Key=self.key(path), Body=data)

    @contextmanager
    def writing(self, path: str) -> Iterator[Path]:
        """Fill a local file, then upload it: in parts if it is large, of which S3 shows all or none."""
        with tempfile.TemporaryDirectory(prefix="curation-writing-") as folder:
            file = Path(folder) / "file"
            file.touch()
            yield file
            self._upload(file, path)

    def create(self, path: str, data: bytes) -> bool:
        """Put the object under If-None-Match."""
        return self._put_if(path, data, IfNoneMatch="*") is not None

    def swap(self, path: str, expected: bytes | None, new: bytes) -> bool:
        """Put the object under If-Match of what was read."""
        if expected is None:
            return self.create(path, new)
        try:
            current, version = self._get(path)
        except FileNotFoundError:
            return False
        return current == expected and self._put_if(path, new, IfMatch=version) is not None

    def _put_if(self, path: str, data: bytes, **condition: str) -> str | None:
        """The new ETag of a conditional put; None if its condition does not hold."""
        forget()
        with clear_errors(self.shown(path)):
            try:
                made = self.client.put_object(Bucket=self.bucket, Key=self.key(path), Body=data, **condition)
                return str(made["ETag"])
            except self.client.exceptions.ClientError as error:
                if code_of(error) not in REFUSED | NOT_THERE:
                    raise
                # The answer to a put that S3 took may be lost; its second try then meets what the first one wrote.
                again = error.response["ResponseMetadata"].get("RetryAttempts", 0) > 0
                return self._version_if(path, data) if again else None

    def _version_if(self, path: str, data: bytes) -> str | None:
        """The ETag of an object that holds these very bytes; None if it holds others, or is not there."""
        with suppress(FileNotFoundError):
            found, version = self._get(path)
            return version if found == data else None
        return None

    def remove(self, path: str) -> None:
        """Delete the object."""
        forget()
        with clear_errors(self.shown(path)):
            self.client.delete_object(Bucket=self.bucket, Key=self.key(path))

    def remove_folder(self, path: str) -> None:
        """Delete the objects, one by one: not every service that speaks S3 deletes several at once."""
        for file in list(self.objects(path)):
            self.remove(file.path)

    def exists(self, path: str) -> bool:
        """Ask for the object's head."""
        return self._head(path) is not None

    def _head(self, path: str) -> dict[str, Any] | None:
        return remembered((*self._asker, "head", path), lambda: self._asked_head(path))

    def _asked_head(self, path: str) -> dict[str, Any] | None:
        with clear_errors(self.shown(path)):
            try:
                head: dict[str, Any] = self.client.head_object(Bucket=self.bucket, Key=self.key(path))
                return head
            except self.client.exceptions.ClientError as error:
                if code_of(error) in NOT_THERE:
                    return None
                raise

    def files(self, folder: str) -> list[StoredFile]:
        """List the objects of a folder."""
        return self._listed(folder, delimiter="/")

    def walk(self, folder: str) -> list[StoredFile]:
        """List the objects below a folder."""
        return self._listed(folder, delimiter="")

    def folders(self, folder: str) -> list[str]:
        """List the common prefixes in a folder."""
        names = []
        for page in self._pages(folder, delimiter="/"):
            names += [item["Prefix"].rstrip("/").rsplit("/", 1)[-1] for item in page.get("CommonPrefixes", [])]
        return sorted(name for name in names if not name.startswith("."))

    def _pages(self, folder: str, delimiter: str) -> list[dict[str, Any]]:
        question = (*self._asker, "list", folder, delimiter)
        return remembered(question, lambda: list(self._asked_pages(folder, delimiter)))

    def _asked_pages(self, folder: str, delimiter: str) -> Iterator[dict[str, Any]]:
        prefix = f"{self.key(folder)}/".lstrip("/")
        with clear_errors(self.shown(folder)):
            pages = self.client.get_paginator("list_objects_v2")
            yield from pages.paginate(Bucket=self.bucket, Prefix=prefix, Delimiter=delimiter)

    def unfinished(self) -> list[StoredFile]:
        """List the claims: an object is never there in part."""
        return [file for file in self.objects() if is_unfinished(file.path)]

    def objects(self, folder: str = "", delimiter: str = "") -> Iterator[StoredFile]:
        """All objects below a folder in the order of their keys, hidden ones and keys that are no paths too."""
        start = len(self.prefix) + 1 if self.prefix else 0
        for page in self._pages(folder, delimiter):
            for item in page.get("Contents", []):
                written = item["LastModified"].timestamp()
                yield StoredFile(item["Key"][start:], int(item["Size"]), _version(item), written)

    def _listed(self, folder: str, delimiter: str = "") -> list[StoredFile]:
        found = []
        for file in self.objects(folder, delimiter):
            parts = file.path.removeprefix(folder).removeprefix("/").split("/")
            # Nor what would lead out of a folder of copies: `..`, or a second slash, which begins at the root.
            if all(part and not part.startswith(".") for part in parts):
                found.append(file)
        return sorted(found, key=lambda file: file.path)

    def make_folder(self, path: str, fill: Callable[[Path], None], last: str) -> bool:
        """Fill a local folder, claim the one of the bucket, put its files, and the last one last."""
        if self.exists(f"{path}/{last}"):
            return False
        with one_look(on=False), tempfile.TemporaryDirectory(prefix="curation-making-") as temporary:
            fill(place := Path(temporary))
            claim = Claim(f"{path}/{CLAIM}", self._put_if, self._head)
            if not claim.take(unless=lambda: self.exists(f"{path}/{last}")):
                return False
            try:
                return self._fill_claimed(path, place, last, claim)
            except BaseException:
                # Whoever tries again must not wait for a maker that has given up. If this fails, too, it does.
                with suppress(StorageError):
                    if claim.renew():
                        self.remove(f"{path}/{CLAIM}")
                raise

    def _fill_claimed(self, path: str, place: Path, last: str, claim: Claim) -> bool:
        """Upload the files of a folder that nobody else makes now, the last one at the end."""
        # What a dead maker left may have other names.
        for left in self.walk(path):
            self.remove(left.path)
        for file in sorted(file for file in place.rglob("*") if file.is_file() and file != place / last):
            if not claim.renew():
                return False
            self._upload(file, f"{path}/{file.relative_to(place).as_posix()}")
        if not claim.renew():
            return False
        made = self.create(f"{path}/{last}", (place / last).read_bytes())
        self.remove(f"{path}/{CLAIM}")
        return made

    def _upload(self, file: Path, path: str) -> None:
        forget()
        with clear_errors(self.shown(path)):
            self.client.upload_file(str(file), self.bucket, self.key(path))

    def seen(self, path: str) -> StoredFile | None:
        """An object as its head tells of it; None if there is none."""
        head = self._head(path)
        return None if head is None else StoredFile(path, int(head["ContentLength"]), _version(head))

    def local(self, path: str) -> Path:
        """Copies in the cache: of a file, or of all files below a folder."""
        alone = self.seen(path)
        found = self.walk(path) if alone is None else [alone]
        if not found:
            raise FileNotFoundError(self.shown(path))
        names = [(file.path, file.size, file.version) for file in found]
        place = self._cache / digest("s3", self.options.endpoint_url, self.place, names)
        if alone is not None:
            return self.fetch(alone, place / alone.name)
        for file in found:
            self.fetch(file, place / file.path.removeprefix(f"{path}/"))
        return place

    def fetch(self, file: StoredFile, target: Path) -> Path:
        """Copy an object as it was seen to a local file, unless it is there already; gives the local file.

        Raises:
            FileNotFoundError: it is gone.
            FileChangedError: it is another one now.
        """
        if target.exists() and target.stat().st_size == file.size:
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as stream:
                self.download(file.path, stream.write, IfMatch=f'"{file.version}"')
            Path(temporary).replace(target)
        finally:
            Path(temporary).unlink(missing_ok=True)
        return target

    def download(self, path: str, sink: Callable[[bytes], object], **condition: str) -> StoredFile | None:
        """Give an object's bytes to a sink, piece by piece; a stream that breaks off is taken up where it was.

        Args:
            path: the object.
            sink: called with each piece.
            condition: IfMatch or IfNoneMatch. Gives None if the object is the latter.

        Raises:
            FileNotFoundError: there is none.
            FileChangedError: it is not the one of IfMatch, or changes while it is read.
        """
        done = 0
        for left in reversed(range(self.options.max_attempts)):
            with clear_errors(self.shown(path)):
                try:
                    found = self.client.get_object(Bucket=self.bucket, Key=self.key(path), **condition)
                    for piece in found["Body"].iter_chunks(CHUNK_BYTES):
                        sink(piece)
                        done += len(piece)
                        condition = {"IfMatch": found["ETag"], "Range": f"bytes={done}-"}
                    return StoredFile(path, done, _version(found))
                except self.client.exceptions.ClientError as error:
                    if code_of(error) in UNCHANGED:
                        return None
                    raise
                except broken_off():
                    if not left:
                        raise
        raise AssertionError("the last attempt returns or raises")

    def open_lazily(self, file: StoredFile) -> BinaryIO:
        """An object as it was seen, of which only the ranges that are read are fetched."""

        def span(start: int, end: int) -> bytes:
            return self._get(file.path, f"bytes={start}-{end - 1}", f'"{file.version}"')[0]

        return cast(BinaryIO, io.BufferedReader(RangeReader(file.size, span), CHUNK_BYTES))

    def scan_parquet(self, paths: Sequence[str], schema: dict[str, pl.DataType]) -> pl.LazyFrame:
        """Scan the objects where they are, with the client's endpoint, region and credentials."""
        return pl.scan_parquet(
            [f"{SCHEME}{self.bucket}/{self.key(path)}" for path in paths],
            schema=schema,
            missing_columns="insert",
            hive_partitioning=False,
            glob=False,
            **polars_access(self.client, self.options.endpoint_url is not None, self.options.max_attempts),
        )


def _version(told: dict[str, Any]) -> str:
    return str(told["ETag"]).strip('"')
