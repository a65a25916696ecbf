"""How tables are kept: Parquet and JSON in a folder or in S3, written whole or not at all.

The warehouse knows paths, frames and footers; what the tables mean is `curation_assets.tables`, and what holds the
files is `resources.storage`. All paths are relative to its root, with `/`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from contextvars import copy_context
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import polars as pl

from resources.digests import bytes_digest
from resources.errors import UserError
from resources.storage import FolderStorage, Storage, StorageError, StoredFile

SCHEMA_VERSION = 1
VERSION_FILE = "warehouse.json"
TABLE = ".parquet"
DOCUMENT = ".json"

T = TypeVar("T")
R = TypeVar("R")


class WarehouseError(UserError):
    """The warehouse cannot be used as it is; the message says how to mend it."""


class Warehouse:
    """Tables below one root. Readers never see a half-written file, and writers never share one.

    Args:
        storage: what holds the files; a path is a folder of this machine.
    """

    def __init__(self, storage: Storage | Path) -> None:
        self.storage = FolderStorage(storage) if isinstance(storage, Path) else storage
        self._footers: dict[str, tuple[str, dict[str, str]]] = {}

    @property
    def root(self) -> Path:
        """The folder of a warehouse that is one."""
        assert isinstance(self.storage, FolderStorage)
        return self.storage.root

    def prepare(self) -> None:
        """Make the root and its version file.

        Raises:
            WarehouseError: the place cannot be used, or was made by another version of the schema.
        """
        place = self.storage.place
        try:
            self.storage.prepare()
            if not self.storage.exists(VERSION_FILE):
                self.storage.create(VERSION_FILE, json.dumps({"schema_version": SCHEMA_VERSION}).encode())
            document = json.loads(self.storage.read(VERSION_FILE))
        except (OSError, StorageError) as error:
            raise WarehouseError(
                f"{place} cannot be used as a warehouse ({error}): correct warehouse in curation.yaml"
            ) from error
        except ValueError as error:
            raise WarehouseError(
                f"{self.storage.shown(VERSION_FILE)} is not JSON ({error}): restore it, or name another warehouse in "
                "curation.yaml"
            ) from error
        found = document.get("schema_version") if isinstance(document, dict) else None
        if found != SCHEMA_VERSION:
            raise WarehouseError(
                f"{place} has warehouse schema {found}, this version reads {SCHEMA_VERSION}: "
                "name another warehouse in curation.yaml, or use the version that made this one"
            )

    # Tables

    def write_table(self, path: str, frame: pl.DataFrame, metadata: Mapping[str, str]) -> None:
        """Write a table with its footer metadata, replacing what was there."""
        self.storage.write(path, parquet_bytes(frame, metadata))

    def read_table(self, path: str) -> pl.DataFrame:
        """Read a whole table.

        Raises:
            FileNotFoundError: there is none.
            WarehouseError: it is damaged.
        """
        # Polars opens a path twice, and a writer may replace the file in between; a stream stays with one state.
        with self._opened(path) as stream:
            return pl.read_parquet(stream)

    def read_column(self, path: str, column: str) -> pl.Series:
        """Read one column of a table; see `read_table`."""
        with self._opened(path) as stream:
            return pl.read_parquet(stream, columns=[column])[column]

    def table_metadata(self, path: str) -> dict[str, str]:
        """The metadata in a table's footer; empty if there is no such table.

        Of a damaged table only `damaged` is told: whatever fingerprint is wanted, it is due to be made again.
        """
        try:
            with self._footer(path) as stream:
                metadata = pl.read_parquet_metadata(stream)
        except FileNotFoundError:
            return {}
        except WarehouseError as error:
            return {"damaged": str(error)}
        return {key: value for key, value in metadata.items() if not key.startswith("ARROW:")}

    def folder_metadata(self, folder: str) -> dict[str, dict[str, str]]:
        """Footer metadata of every table in a folder, by file name without suffix.

        Of a file that is as it was at the last call nothing is read.
        """
        found = [file for file in self.storage.files(folder) if file.name.endswith(TABLE)]
        told = self._each(self._told, found)
        return {file.name.removesuffix(TABLE): metadata for file, metadata in zip(found, told, strict=True)}

    def _told(self, file: StoredFile) -> dict[str, str]:
        version, metadata = self._footers.get(file.path, ("", {}))
        if version != file.version:
            metadata = self.table_metadata(file.path)
            self._footers[file.path] = (file.version, metadata)
        return metadata

    def _each(self, read: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """What reading gives of each item, several at the same time where that is faster."""
        if self.storage.at_once == 1 or len(items) < 2:
            return [read(item) for item in items]
        with ThreadPoolExecutor(min(self.storage.at_once, len(items))) as pool:
            # Each with the caller's context: what one look remembers counts for all of them.
            return list(pool.map(lambda item, context: context.run(read, item), items, [copy_context() for _ in items]))

    def names(self, folder: str) -> list[str]:
        """Names, without suffix, of the tables in a folder, sorted."""
        return self._names(folder, TABLE)

    def scan(self, folder: str, names: Iterable[str] | None = None) -> pl.LazyFrame | None:
        """Lazy frame over the tables of a folder (of the given names only), or None if there are none."""
        present = self.names(folder)
        wanted = present if names is None else sorted(set(present) & set(names))
        if not wanted:
            return None
        return self._scan([f"{folder}/{name}{TABLE}" for name in wanted])

    def scan_table(self, path: str) -> pl.LazyFrame | None:
        """Lazy frame over one table, or None if there is no such table."""
        return self._scan([path]) if self.storage.exists(path) else None

    def _scan(self, paths: list[str]) -> pl.LazyFrame:
        # Without a schema, Polars opens the first file twice, and a writer may replace it in between. Tables
        # with open columns differ in these while they are made anew: a scan has the columns of all of them.
        schema: dict[str, pl.DataType] = {}
        for one in self._each(self._schema, paths):
            schema |= one
        return self.storage.scan_parquet(paths, schema)

    def _schema(self, path: str) -> dict[str, pl.DataType]:
        with self._footer(path) as stream:
            return dict(pl.read_parquet_schema(stream))

    def _opened(self, path: str) -> AbstractContextManager[BinaryIO]:
        return _named(self.storage.open(path), self.storage.shown(path))

    def _footer(self, path: str) -> AbstractContextManager[BinaryIO]:
        return _named(self.storage.open_end(path), self.storage.shown(path))

    # Small documents

    def write_json(self, path: str, document: Any) -> None:
        """Write a JSON document, replacing what was there."""
        self.storage.write(path, json.dumps(document, indent=1, sort_keys=True).encode())

    def read_json(self, path: str) -> Any:
        """A JSON document, or None if there is none."""
        text = self.read_text(path)
        return None if text is None else json.loads(text)

    def documents(self, folder: str) -> list[str]:
        """Names, without suffix, of the JSON documents in a folder, sorted."""
        return self._names(folder, DOCUMENT)

    def _names(self, folder: str, suffix: str) -> list[str]:
        return sorted(
            file.name.removesuffix(suffix) for file in self.storage.files(folder) if file.name.endswith(suffix)
        )

    def files(self, folder: str) -> list[StoredFile]:
        """All files below a folder."""
        return self.storage.walk(folder)

    # Things made once

    def write_once(self, path: str, data: bytes) -> None:
        """Write a file that is named by its content: if it is there, it is the same."""
        if not self.storage.exists(path):
            self.storage.write(path, data)

    def create_folder(self, path: str, fill: Callable[[Path], None], last: str) -> bool:
        """Create a folder whole, or not at all; False if it exists already (and nothing is changed).

        Args:
            path: the folder.
            fill: writes the contents into the temporary folder that it is given.
            last: the file in it that makes it whole.
        """
        return self.storage.make_folder(path, fill, last)

    def made_folders(self, folder: str, last: str) -> list[str]:
        """Names of the folders in a folder that are whole, sorted."""
        return [name for name in self.storage.folders(folder) if self.storage.exists(f"{folder}/{name}/{last}")]

    def compare_and_swap(self, path: str, expected: str | None, new: str) -> bool:
        """Replace a small text if it still reads `expected` (None: does not exist); False if it does not."""
        return self.storage.swap(path, None if expected is None else expected.encode(), new.encode())

    def read_text(self, path: str) -> str | None:
        """A small text, or None if there is none."""
        try:
            return self.storage.read(path).decode()
        except FileNotFoundError:
            return None

    def local(self, path: str) -> Path:
        """A file or folder that never changes as one on this machine's disk.

        Raises:
            FileNotFoundError: there is none.
        """
        return self.storage.local(path)


class Measurements:
    """The rows of one signal under one fingerprint, in append-only parts, keyed by sample_id.

    A part is a Parquet file named by the hash of its bytes; its `sample_id` column is its index. Writers
    only ever add parts, so that they cannot disturb one another; if two measure the same sample, the row
    of the part that sorts first counts.
    """

    def __init__(self, warehouse: Warehouse, folder: str) -> None:
        self._warehouse = warehouse
        self.folder = folder
        self._index = pl.DataFrame(schema={"sample_id": pl.String, "part": pl.String})
        self._indexed: set[str] = set()

    def append(self, frame: pl.DataFrame) -> str:
        """Commit rows as one part; gives the part's name."""
        data = parquet_bytes(frame, {})
        name = f"part-{bytes_digest(data)}"
        self._warehouse.storage.write(f"{self.folder}/{name}{TABLE}", data)
        return name

    def index(self) -> pl.DataFrame:
        """Every measured sample_id with the part that holds it. Parts never change: each is read once."""
        new = [name for name in self._warehouse.names(self.folder) if name not in self._indexed]
        if new:
            self._index = pl.concat([self._index, *(self._ids_of(name) for name in new)])
            self._index = self._index.sort("part").unique("sample_id", keep="first")
            self._indexed.update(new)
        return self._index

    def _ids_of(self, name: str) -> pl.DataFrame:
        ids = self._warehouse.read_column(f"{self.folder}/{name}{TABLE}", "sample_id")
        return ids.to_frame().select("sample_id", part=pl.lit(name))

    def parts_of(self, sample_ids: pl.Series) -> list[str]:
        """Names of the parts that hold these samples, sorted."""
        wanted = sample_ids.unique().cast(pl.String).to_frame("sample_id")
        return self.index().join(wanted, on="sample_id", how="semi")["part"].unique().sort().to_list()

    def missing(self, sample_ids: pl.Series) -> set[str]:
        """Those of the sample_ids that have not been measured."""
        return set(sample_ids.unique().to_list()) - set(self.index()["sample_id"].to_list())

    def rows(self, sample_ids: pl.Series) -> pl.DataFrame | None:
        """The rows of these samples, in order of sample_id; None if nothing at all has been measured."""
        asked = sample_ids.cast(pl.String).unique().to_frame("sample_id")
        wanted = self.index().join(asked, on="sample_id", how="semi")
        parts = wanted["part"].unique().sort().to_list()
        if not parts:
            parts = self._warehouse.names(self.folder)[:1]
        lazy = self._warehouse.scan(self.folder, parts)
        if lazy is None:
            return None
        return (
            lazy.join(wanted.select("sample_id").lazy(), on="sample_id", how="semi", maintain_order="left")
            .collect()
            .unique("sample_id", keep="first", maintain_order=True)
            .sort("sample_id")
        )


@contextmanager
def _named(opened: AbstractContextManager[BinaryIO], shown: str) -> Iterator[BinaryIO]:
    """A Parquet file to be read; what Polars says of a damaged one becomes an error that names it."""
    with opened as stream:
        try:
            yield stream
        except pl.exceptions.ComputeError as error:
            raise WarehouseError(f"{shown} is damaged ({error}): delete it, and it is made again when due") from error


def parquet_bytes(frame: pl.DataFrame, metadata: Mapping[str, str]) -> bytes:
    """A table as the warehouse writes it."""
    buffer = io.BytesIO()
    frame.write_parquet(buffer, compression="zstd", metadata=dict(metadata))
    return buffer.getvalue()
