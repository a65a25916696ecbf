"""A prefix of a bucket as a storage, in S3, Google Cloud Storage or Azure Blob Storage, over the library obstore.

An object is stored whole or not at all. A conditional put fails if the object exists, or if it is not the expected
version any more. Folders have neither: a folder is complete once its last file exists, and its maker holds a claim
until then.

obstore does not support keys with empty, `.` or `..` segments or with control characters: a listing that meets one
fails. Then S3 is listed through botocore (`storage.aws`); for the others this is an error that names the key. obstore
also removes slashes at both ends of a key, so folder markers, as consoles create them, look like empty files; they are
recognised by a second listing.
"""

from __future__ import annotations

import io
import os
import random
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast
from urllib.parse import urlsplit

import obstore
import polars as pl
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    GenericError,
    InvalidPathError,
    NotModifiedError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import AzureStore, GCSStore, S3Store

from curation_resources.storage.aws import AwsAccess, AwsKeys, aws_access, exact_listing
from curation_resources.storage.digests import CHUNK_BYTES, digest
from curation_resources.storage.files import (
    CLAIM,
    AccessRefusedError,
    FileChangedError,
    Storage,
    StorageError,
    StoredFile,
    is_unfinished,
)
from curation_resources.storage.folder_claim import Claim, update_version
from curation_resources.storage.read_cache import forget, one_look, remembered

if TYPE_CHECKING:
    from obstore import GetOptions, ObjectMeta, UpdateVersion
    from obstore.store import ClientConfig, RetryConfig, S3Config

T = TypeVar("T")

SMALL = 2**20
"""Largest file, in bytes, that the read cache holds."""

FOOTER = 64 * 2**10
"""Bytes at the end of a Parquet file that are read for its footer; more if it is longer."""

PART_BYTES = 8 * 2**20
"""Smallest part of a multipart upload; smaller files are uploaded in one request."""

MOST_PARTS = 10_000
"""Parts that S3 accepts for one object."""

ATTEMPTS = 6
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 15.0
"""Seconds between two attempts that obstore does not make itself: doubled each time, up to the longest."""

RETRY_TIMEOUT = timedelta(seconds=60)
"""Time after which a request is not tried again. Python cannot interrupt a request, so Ctrl-C waits for its end."""

TIMEOUTS: ClientConfig = {
    "connect_timeout": timedelta(seconds=10),
    "read_timeout": timedelta(seconds=30),
    # Of a request with its whole body: a large file takes as long as it takes.
    "timeout": timedelta(days=1),
}


@dataclass(frozen=True)
class _Service:
    """A kind of object store, as messages name it.

    Attributes:
        name: for people.
        credentials: fix for missing credentials.
        endpoint: setting of its endpoint.
    """

    name: str
    credentials: str
    endpoint: str


_S3 = _Service(
    "S3", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile in s3.profile", "s3.endpoint_url"
)
_GCS = _Service(
    "Google Cloud Storage",
    "set GOOGLE_APPLICATION_CREDENTIALS or GOOGLE_SERVICE_ACCOUNT, or use a service account of the machine",
    "GOOGLE_BASE_URL",
)
_AZURE = _Service(
    "Azure Blob Storage",
    "set AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN, or use a managed "
    "identity",
    "AZURE_STORAGE_ENDPOINT",
)
_SERVICES = {"s3": _S3, "gs": _GCS, "az": _AZURE, "abfs": _AZURE, "abfss": _AZURE}

ADDRESSES = "s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX"
"""Supported addresses, for messages."""

_NO_CREDENTIALS = ("credential provider", "token request", "Account must be specified")
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")
_NO_ACCESS = frozenset({"401", "403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"})
_LOST_UPLOAD = "NoSuchUpload"
_OTHER_REGION = "the bucket is in another region: set s3.region"
_FIXES = {
    **dict.fromkeys(_NO_BUCKET, "there is no such bucket: create it, or correct the address"),
    **dict.fromkeys(("AuthorizationHeaderMalformed", "PermanentRedirect"), _OTHER_REGION),
    **dict.fromkeys(("ExpiredToken", "TokenRefreshRequired"), "the credentials have expired: renew them"),
    _LOST_UPLOAD: "a multipart upload was lost several times: try again",
    "RequestTimeTooSkewed": "the clock of this machine is wrong: correct it",
}
"""By error code, what is wrong and the fix."""

_TRANSIENT = frozenset({"408", "429"})


def is_object_address(place: str) -> bool:
    """Return True if a place is an address in an object store, not a folder."""
    scheme, separator, _ = place.partition("://")
    return bool(separator) and scheme in _SERVICES


def is_valid_path(path: str) -> bool:
    """Return True if obstore can read an object with this key."""
    parts = path.split("/")
    return not {"", ".", ".."} & set(parts) and not any(char < " " or char == "\x7f" for char in path)


@dataclass(frozen=True)
class ObjectStoreOptions:
    """Options for reaching an object store. Options that are not set come from the environment.

    Only `max_attempts` applies to Google Cloud Storage and Azure, which are configured by the environment alone.

    Attributes:
        endpoint_url: another service than AWS.
        region: of the bucket.
        profile: a named profile of the AWS configuration.
        max_attempts: attempts of a request that the service throttles or fails, with growing pauses.
        keys: credentials for S3 instead of those of the environment, a profile or a role.
    """

    endpoint_url: str | None = None
    region: str | None = None
    profile: str | None = None
    max_attempts: int = ATTEMPTS
    keys: AwsKeys | None = field(default=None, repr=False)


@dataclass(frozen=True)
class _Listing:
    """The objects and folders that a listing found, with their full keys."""

    objects: tuple[StoredFile, ...]
    folders: tuple[str, ...] = ()


class ObjectStorage(Storage):
    """A prefix of a bucket.

    Args:
        uri: s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or abfs://container/prefix.
        options: how it is reached.
        cache: local folder for copies of files that never change.

    Raises:
        StorageError: the address names no bucket, or a prefix that obstore does not support.
    """

    def __init__(self, uri: str, options: ObjectStoreOptions, cache: Path) -> None:
        parts = urlsplit(uri)
        if parts.scheme not in _SERVICES or not parts.netloc or parts.query or parts.fragment:
            raise StorageError(f"{uri} is not an address of a bucket: write {ADDRESSES}")
        self.scheme = parts.scheme
        self.bucket = parts.netloc
        self.prefix = parts.path.strip("/")
        if self.prefix and not is_valid_path(self.prefix):
            raise StorageError(f"{uri}: the prefix has an empty, `.` or `..` part: use another prefix")
        self.options = options
        self._service = _SERVICES[parts.scheme]
        self._cache = cache
        self._asker = (options, self.place)

    @property
    def at_once(self) -> int:
        """Requests take long and do not slow each other down."""
        return 16

    @property
    def place(self) -> str:
        """The address, such as s3://bucket/prefix."""
        return f"{self.scheme}://{self.bucket}/{self.prefix}".rstrip("/")

    @cached_property
    def _aws(self) -> AwsAccess:
        options = self.options
        return aws_access(self.place, options.endpoint_url, options.region, options.profile, options.keys)

    @cached_property
    def store(self) -> S3Store | GCSStore | AzureStore:
        """The bucket; requests are retried with growing pauses."""
        return self._connect(self.options.max_attempts - 1)

    @cached_property
    def _store_without_retries(self) -> S3Store | GCSStore | AzureStore:
        """The bucket for conditional puts, whose retries `_put_if` has to count."""
        return self._connect(0)

    def _connect(self, max_retries: int) -> S3Store | GCSStore | AzureStore:
        address = f"{self.scheme}://{self.bucket}"
        retries: RetryConfig = {"max_retries": max_retries, "retry_timeout": RETRY_TIMEOUT}
        with self._clear_errors(self.place):
            if self._service is _S3:
                access = self._aws
                # Not every service that speaks S3 deletes several objects at once.
                config: S3Config = {"region": access.region, "disable_bulk_delete": True}
                if access.endpoint_url is not None:
                    config["endpoint"] = access.endpoint_url
                return S3Store.from_url(
                    address,
                    config=config,
                    credential_provider=access.credentials,
                    client_options=_client_options(access.endpoint_url),
                    retry_config=retries,
                )
            if self._service is _GCS:
                endpoint = os.environ.get("GOOGLE_BASE_URL")
                return GCSStore.from_url(address, client_options=_client_options(endpoint), retry_config=retries)
            endpoint = os.environ.get("AZURE_STORAGE_ENDPOINT") or os.environ.get("AZURE_ENDPOINT")
            return AzureStore.from_url(address, client_options=_client_options(endpoint), retry_config=retries)

    def key(self, path: str) -> str:
        """Return the key of a path."""
        return f"{self.prefix}/{path}".strip("/")

    @contextmanager
    def _clear_errors(self, what: str) -> Iterator[None]:
        """Raise errors of obstore as errors that state the fix.

        Raises:
            FileNotFoundError: there is no such object.
            FileChangedError: the object is not the one that a condition names.
            AccessRefusedError: access is denied.
            StorageError: the service cannot be used.
        """
        try:
            yield
        except FileNotFoundError as error:
            if error.errno is not None:  # a local file
                raise
            if _code(error) in (*_NO_BUCKET, _LOST_UPLOAD):
                raise StorageError(f"{what}: {self._problem(error)}") from error
            raise FileNotFoundError(what) from error
        except ValueError as error:
            if "Could not parse path" not in str(error):
                raise
            raise FileNotFoundError(f"{what}: not a valid path in an object store") from error
        except (PreconditionError, AlreadyExistsError) as error:
            raise FileChangedError(f"{what}: changed while it was read") from error
        except BaseError as error:
            denied = isinstance(error, PermissionDeniedError | UnauthenticatedError) or _code(error) in _NO_ACCESS
            if denied and _code(error) not in _FIXES and not _lacks_credentials(error):
                raise AccessRefusedError(
                    f"{what}: {self._service.name} refuses access ({_code(error)}): check credentials and the "
                    "bucket's policy"
                ) from error
            raise StorageError(f"{what}: {self._problem(error)}") from error

    def _problem(self, error: Exception) -> str:
        """Return why the service cannot be used, with the fix."""
        name, detail, code = self._service.name, _first_line(error), _code(error)
        if code in _FIXES:
            return _FIXES[code]
        if "redirect without LOCATION" in detail:
            return _OTHER_REGION
        if _lacks_credentials(error):
            return f"no credentials for {name} ({detail}): {self._service.credentials}"
        if not code:
            return f"{name} cannot be reached ({detail}): check {self._service.endpoint} and the network"
        explained = re.search(r"<Message>([^<]*)</Message>", str(error))
        retried = " after several attempts" if re.search(r"after [1-9]\d* retries", str(error)) else ""
        return f"{name} failed{retried} ({code}): {explained[1] if explained else detail}"

    def prepare(self) -> None:
        """Check that the bucket can be listed."""
        with self._clear_errors(self.place), suppress(InvalidPathError):
            next(iter(obstore.list(self.store, self.prefix or None)), None)

    def open(self, path: str) -> AbstractContextManager[BinaryIO]:
        """Read the object, in one version."""
        return closing(cast(BinaryIO, io.BytesIO(self._get(path)[0])))

    def open_end(self, path: str) -> AbstractContextManager[BinaryIO]:
        """Read the object's end, as far as a Parquet footer reaches."""
        end = self._get_end(path, FOOTER)
        if len(end) >= 8 and end[-4:] == b"PAR1":
            footer = int.from_bytes(end[-8:-4], "little") + 8
            if footer > len(end):
                end = self._get_end(path, footer)
        return closing(cast(BinaryIO, io.BytesIO(end)))

    def _get_end(self, path: str, size: int) -> bytes:
        if self._service is not _AZURE:
            return self._get(path, {"range": {"suffix": size}})[0]
        # Azure serves no range that counts from the end.
        head = self._head(path)
        if head is None:
            raise FileNotFoundError(self.shown(path))
        start = max(0, head["size"] - size)
        return self._get(path, {"range": (start, head["size"])} if start else None)[0]

    def _get(self, path: str, options: GetOptions | None = None) -> tuple[bytes, UpdateVersion]:
        """Return an object's bytes, or a range of them, and its version."""
        question = (*self._asker, "get", path, str(options))
        return remembered(question, lambda: self._fetched(path, options), lambda got: len(got[0]) <= SMALL)

    def _fetched(self, path: str, options: GetOptions | None) -> tuple[bytes, UpdateVersion]:
        with self._clear_errors(self.shown(path)):
            try:
                found = obstore.get(self.store, self.key(path), options=options)
                return found.bytes().to_bytes(), update_version(found.meta)
            except GenericError as error:
                # An empty object has no range.
                if options is not None and (_code(error) in {"416", "InvalidRange"} or "non-partial" in str(error)):
                    return self._get(path)
                raise

    def write(self, path: str, data: bytes) -> None:
        """Put the object."""
        forget()
        with self._clear_errors(self.shown(path)):
            obstore.put(self.store, self.key(path), data, use_multipart=False)

    @contextmanager
    def writing(self, path: str) -> Iterator[Path]:
        """Fill a local file, then upload it. A large file is uploaded in parts, which appear together at the end."""
        with tempfile.TemporaryDirectory(prefix="curation-writing-") as folder:
            file = Path(folder) / "file"
            file.touch()
            yield file
            self._upload(file, path)

    def create(self, path: str, data: bytes) -> bool:
        """Put the object on condition that it does not exist."""
        return self._put_if(path, data) is not None

    def swap(self, path: str, expected: bytes | None, new: bytes) -> bool:
        """Put the object on condition that it is still the version that was read."""
        if expected is None:
            return self.create(path, new)
        try:
            current, version = self._get(path)
        except FileNotFoundError:
            return False
        return current == expected and self._put_if(path, new, version) is not None

    def _put_if(self, path: str, data: bytes, expected: UpdateVersion | None = None) -> UpdateVersion | None:
        """Put an object if it does not exist, or is still `expected`; return its new version, or None if it is not.

        An attempt whose answer is lost may have succeeded. Then the next attempt fails because of the first one's
        object, which has the same bytes. A first attempt that fails met another writer, even if the bytes are equal.
        """
        forget()
        deadline = time.monotonic() + RETRY_TIMEOUT.total_seconds()
        for attempt in range(self.options.max_attempts):
            with self._clear_errors(self.shown(path)):
                try:
                    made = obstore.put(
                        self._store_without_retries,
                        self.key(path),
                        data,
                        mode="create" if expected is None else expected,
                        use_multipart=False,
                    )
                    return update_version(made)
                except (AlreadyExistsError, PreconditionError):
                    return self._version_if(path, data) if attempt else None
                except GenericError as error:
                    last = attempt + 1 == self.options.max_attempts or time.monotonic() > deadline
                    if last or not _is_transient(error):
                        raise
            time.sleep(_pause(attempt))
        raise AssertionError("the last attempt returns or raises")

    def _version_if(self, path: str, data: bytes) -> UpdateVersion | None:
        """Return the version of an object that has exactly these bytes; None if it has others, or does not exist."""
        with suppress(FileNotFoundError):
            found, version = self._get(path)
            return version if found == data else None
        return None

    def remove(self, path: str) -> None:
        """Delete the object."""
        forget()
        with suppress(FileNotFoundError), self._clear_errors(self.shown(path)):
            obstore.delete(self.store, self.key(path))

    def remove_folder(self, path: str) -> None:
        """Delete the objects one by one."""
        for file in self.objects(path):
            if is_valid_path(file.path):
                self.remove(file.path)

    def exists(self, path: str) -> bool:
        """Request the object's metadata."""
        return self._head(path) is not None

    def _head(self, path: str) -> ObjectMeta | None:
        return remembered((*self._asker, "head", path), lambda: self._fetched_head(path))

    def _fetched_head(self, path: str) -> ObjectMeta | None:
        with suppress(FileNotFoundError), self._clear_errors(self.shown(path)):
            return obstore.head(self.store, self.key(path))
        return None

    def files(self, folder: str) -> list[StoredFile]:
        """List the objects of a folder."""
        return self._visible(folder, self._listing(folder, deep=False).objects)

    def walk(self, folder: str) -> list[StoredFile]:
        """List the objects below a folder."""
        return self._visible(folder, self.objects(folder))

    def folders(self, folder: str) -> list[str]:
        """List the common prefixes in a folder."""
        names = {key.removesuffix("/").rpartition("/")[2] for key in self._listing(folder, deep=False).folders}
        return sorted(name for name in names if name and not name.startswith("."))

    def unfinished(self) -> list[StoredFile]:
        """List the claims, because no object exists in part."""
        return [file for file in self.objects() if is_unfinished(file.path)]

    def objects(self, folder: str = "") -> list[StoredFile]:
        """Return all objects below a folder, also hidden ones and keys that are not valid paths."""
        found = self._listing(folder, deep=True).objects
        # A folder marker, an empty object whose key ends with a slash, looks like an empty file here, but like a
        # folder in the listing of the folder above it.
        above = {file.path.rpartition("/")[0] for file in found if not file.size and is_valid_path(file.path)}
        files = {file.path for one in above for file in self._listing(one, deep=False).objects}
        return [
            StoredFile(f"{file.path}/", 0, file.version, file.modified)
            if not file.size and is_valid_path(file.path) and file.path not in files
            else file
            for file in found
        ]

    def _listing(self, folder: str, *, deep: bool) -> _Listing:
        if folder and not is_valid_path(folder):
            return _Listing(())
        return remembered((*self._asker, "list", folder, deep), lambda: self._fetched_listing(folder, deep))

    def _fetched_listing(self, folder: str, deep: bool) -> _Listing:
        key = self.key(folder)
        with self._clear_errors(self.shown(folder)):
            try:
                if deep:
                    metas = self._repeated(lambda: obstore.list(self.store, key or None).collect())
                    return _Listing(tuple(self._listed(meta, key) for meta in metas))
                found = self._repeated(lambda: obstore.list_with_delimiter(self.store, key or None))
                objects = tuple(self._listed(meta, key) for meta in found["objects"])
                return _Listing(objects, tuple(found["common_prefixes"]))
            except InvalidPathError as error:
                if self._service is not _S3:
                    raise StorageError(
                        f"{self.shown(folder)}: an object's key is not a valid path ({_first_line(error)}): "
                        "rename or remove it"
                    ) from error
        return self._exact_listing(key, "" if deep else "/")

    def _exact_listing(self, key: str, delimiter: str) -> _Listing:
        """List a folder that contains keys that obstore refuses."""
        objects, folders = [], []
        prefix = f"{key}/" if key else ""
        for page in exact_listing(self._aws, self.bucket, prefix, delimiter, self.place):
            folders += [item["Prefix"] for item in page.get("CommonPrefixes", [])]
            for item in page.get("Contents", []):
                version = str(item["ETag"]).strip('"')
                path = item["Key"][self._start :]
                objects.append(StoredFile(path, int(item["Size"]), version, item["LastModified"].timestamp()))
        return _Listing(tuple(objects), tuple(folders))

    @property
    def _start(self) -> int:
        return len(self.prefix) + 1 if self.prefix else 0

    def _listed(self, meta: ObjectMeta, folder: str) -> StoredFile:
        path = meta["path"][self._start :]
        if path and meta["path"] == folder:  # the marker of the folder that is listed
            path += "/"
        return StoredFile(path, meta["size"], _version(meta), meta["last_modified"].timestamp())

    def _visible(self, folder: str, files: Sequence[StoredFile]) -> list[StoredFile]:
        found = []
        for file in files:
            below = file.path.removeprefix(folder).removeprefix("/")
            # A key that is not a valid path could lead out of a folder of copies.
            if is_valid_path(below) and not any(part.startswith(".") for part in below.split("/")):
                found.append(file)
        return sorted(found, key=lambda file: file.path)

    def make_folder(self, path: str, fill: Callable[[Path], None], last: str) -> bool:
        """Fill a local folder, claim the one of the bucket, and put its files, the last one at the end."""
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
                # The next maker must not wait for one that gave up. If this fails too, it waits.
                with suppress(StorageError):
                    if claim.renew():
                        self.remove(f"{path}/{CLAIM}")
                raise

    def _fill_claimed(self, path: str, place: Path, last: str, claim: Claim) -> bool:
        """Upload the files of a folder that nobody else makes now, the last one at the end."""
        # The files that a dead maker left may have other names.
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
        part = max(PART_BYTES, file.stat().st_size // MOST_PARTS + 1)
        with self._clear_errors(self.shown(path)):
            self._repeated(lambda: obstore.put(self.store, self.key(path), file, chunk_size=part))

    def _repeated(self, request: Callable[[], T]) -> T:
        """Send a request, and send it again if its answer breaks off, which obstore does only for downloads.

        A multipart upload whose last answer is lost does not exist any more when obstore tries to complete it again.
        """
        for attempt in range(self.options.max_attempts - 1):
            try:
                return request()
            except (GenericError, FileNotFoundError) as error:
                if "response body error" not in _first_line(error) and _code(error) != _LOST_UPLOAD:
                    raise
            time.sleep(_pause(attempt))
        return request()

    def seen(self, path: str) -> StoredFile | None:
        """Return an object as its metadata describes it; None if it does not exist."""
        head = self._head(path)
        return None if head is None else StoredFile(path, head["size"], _version(head))

    def local(self, path: str) -> Path:
        """Return the copy in the cache: of a file, or of all files below a folder."""
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
        """Copy an object, as a listing found it, to a local file unless that exists; return the local file.

        Raises:
            FileNotFoundError: the object no longer exists.
            FileChangedError: it was replaced.
        """
        if target.exists() and target.stat().st_size == file.size:
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as stream:
                self.download(file.path, stream.write, {"if_match": f'"{file.version}"'})
            Path(temporary).replace(target)
        finally:
            Path(temporary).unlink(missing_ok=True)
        return target

    def download(
        self, path: str, sink: Callable[[bytes], object], options: GetOptions | None = None
    ) -> StoredFile | None:
        """Pass an object's bytes to a sink, piece by piece; a stream that breaks off is resumed where it ended.

        obstore resumes streams itself, but only within its time limit for retries, which a large file exceeds.

        Args:
            path: the object.
            sink: called with each piece.
            options: a condition, `if_match` or `if_none_match`. Returns None if the object matches the latter.

        Raises:
            FileNotFoundError: the object does not exist.
            FileChangedError: it does not match `if_match`, or changes while it is read.
        """
        done = 0
        with self._clear_errors(self.shown(path)):
            for left in reversed(range(self.options.max_attempts)):
                try:
                    found = obstore.get(self.store, self.key(path), options=options)
                except NotModifiedError:
                    return None
                try:
                    if done < found.meta["size"]:
                        for piece in found.stream(CHUNK_BYTES):
                            sink(bytes(piece))
                            done += len(piece)
                    return StoredFile(path, done, _version(found.meta))
                except GenericError:
                    if not left:
                        raise
                options = {"if_match": found.meta["e_tag"], "range": {"offset": done}}
        raise AssertionError("the last attempt returns or raises")

    def open_lazily(self, file: StoredFile) -> BinaryIO:
        """Open an object as a listing found it; only the ranges that are read are fetched."""

        def span(start: int, end: int) -> bytes:
            return self._get(file.path, {"range": (start, end), "if_match": f'"{file.version}"'})[0]

        return cast(BinaryIO, io.BufferedReader(_RangeReader(file.size, span), CHUNK_BYTES))

    def scan_parquet(self, paths: Sequence[str], schema: dict[str, pl.DataType]) -> pl.LazyFrame:
        """Scan the objects in place. Polars has a client of its own, which uses the same configuration."""
        # `timeout` is that of a request for one range, with its body.
        options = {"max_retries": self.options.max_attempts, "connect_timeout": "10s", "timeout": "120s"}
        access: dict[str, Any] = {"storage_options": options, "credential_provider": None}
        if self._service is _S3:
            with self._clear_errors(self.place):
                access = self._aws.polars_options(options)
        return pl.scan_parquet(
            [f"{self.scheme}://{self.bucket}/{self.key(path)}" for path in paths],
            schema=schema,
            missing_columns="insert",
            hive_partitioning=False,
            glob=False,
            **access,
        )


class _RangeReader(io.RawIOBase):
    """A stream over ranges of an object.

    obstore's own reader does not notice that an object was replaced between two ranges.

    Args:
        size: of the object, in bytes.
        fetch: returns the bytes between two positions.
    """

    def __init__(self, size: int, fetch: Callable[[int, int], bytes]) -> None:
        super().__init__()
        self._size = size
        self._fetch = fetch
        self._position = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position; see `io.IOBase.seek`."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fetch as much as fits; return 0 at the end."""
        end = min(self._size, self._position + len(buffer))
        if end <= self._position:
            return 0
        piece = self._fetch(self._position, end)
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)


def _client_options(endpoint: str | None) -> ClientConfig:
    plain = endpoint is not None and endpoint.startswith("http://")
    return {**TIMEOUTS, "allow_http": True} if plain else TIMEOUTS


def _version(meta: ObjectMeta) -> str:
    return str(meta["e_tag"]).strip('"')


def _first_line(error: Exception) -> str:
    """Return an error's message without the service's answer and obstore's internals."""
    return str(error).partition("\n")[0].partition(": <?xml")[0]


def _lacks_credentials(error: Exception) -> bool:
    return any(text in _first_line(error) for text in _NO_CREDENTIALS)


def _code(error: Exception) -> str:
    """Return the service's error code, else the HTTP status; empty if there was no answer."""
    text = str(error).partition("Debug source:")[0]
    found = re.search(r"<Code>(\w+)</Code>", text) or re.search(r"status code: (\d+)", text)
    return found[1] if found else ""


def _pause(attempt: int) -> float:
    return random.uniform(0.5, 1) * min(LONGEST_PAUSE, FIRST_PAUSE * float(2**attempt))


def _is_transient(error: Exception) -> bool:
    """Return True if another attempt may succeed: there was no answer, or the server failed."""
    status = re.search(r"status code: (\d+)", str(error))
    return status is None or status[1].startswith("5") or status[1] in _TRANSIENT
