"""How tables are kept: Parquet and JSON on disk, written whole or not at all.

The warehouse knows paths, frames and footers; what the tables mean is `curation_assets.tables`. All paths
are relative to its root, with `/`.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import polars as pl

from resources.digests import atomic_write, bytes_digest
from resources.errors import UserError

SCHEMA_VERSION = 1


class WarehouseError(UserError):
    """The warehouse cannot be used as it is; the message says how to mend it."""


class Warehouse:
    """A folder of tables. Readers never see a half-written file, and writers never share one."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def prepare(self) -> None:
        """Create the folder and its version file.

        Raises:
            WarehouseError: the folder cannot be used, or was made by another version of the schema.
        """
        version_file = self.root / "warehouse.json"
        try:
            if not version_file.exists():
                atomic_write(version_file, json.dumps({"schema_version": SCHEMA_VERSION}).encode())
                return
            document = json.loads(version_file.read_bytes())
        except OSError as error:
            raise WarehouseError(
                f"{self.root} cannot be used as a warehouse ({error}): correct warehouse in curation.yaml"
            ) from error
        except ValueError as error:
            raise WarehouseError(
                f"{version_file} is not JSON ({error}): restore it, or name another warehouse in curation.yaml"
            ) from error
        found = document.get("schema_version") if isinstance(document, dict) else None
        if found != SCHEMA_VERSION:
            raise WarehouseError(
                f"{self.root} has warehouse schema {found}, this version reads {SCHEMA_VERSION}: "
                "name another warehouse in curation.yaml, or use the version that made this one"
            )

    # Tables

    def write_table(self, path: str, frame: pl.DataFrame, metadata: Mapping[str, str]) -> None:
        """Write a table with its footer metadata, replacing what was there."""
        atomic_write(self.root / path, _parquet_bytes(frame, metadata))

    def read_table(self, path: str) -> pl.DataFrame:
        """Read a whole table.

        Raises:
            FileNotFoundError: there is none.
            WarehouseError: it is damaged.
        """
        # Polars opens a path twice, and a writer may replace the file in between; a handle stays with one file.
        with _opened(self.root / path) as stream:
            return pl.read_parquet(stream)

    def table_metadata(self, path: str) -> dict[str, str]:
        """The metadata in a table's footer; empty if there is no such table.

        Of a damaged table only `damaged` is told: whatever fingerprint is wanted, it is due to be made again.
        """
        try:
            with _opened(self.root / path) as stream:
                metadata = pl.read_parquet_metadata(stream)
        except FileNotFoundError:
            return {}
        except WarehouseError as error:
            return {"damaged": str(error)}
        return {key: value for key, value in metadata.items() if not key.startswith("ARROW:")}

    def folder_metadata(self, folder: str) -> dict[str, dict[str, str]]:
        """Footer metadata of every table in a folder, by file name without suffix."""
        return {name: self.table_metadata(f"{folder}/{name}.parquet") for name in self.names(folder)}

    def names(self, folder: str) -> list[str]:
        """Names, without suffix, of the tables in a folder, sorted."""
        return sorted(path.name.removesuffix(".parquet") for path in (self.root / folder).glob("[!.]*.parquet"))

    def scan(self, folder: str, names: Iterable[str] | None = None) -> pl.LazyFrame | None:
        """Lazy frame over the tables of a folder (of the given names only), or None if there are none."""
        present = self.names(folder)
        wanted = present if names is None else sorted(set(present) & set(names))
        if not wanted:
            return None
        return _scan([self.root / folder / f"{name}.parquet" for name in wanted])

    def scan_table(self, path: str) -> pl.LazyFrame | None:
        """Lazy frame over one table, or None if there is no such table."""
        file = self.root / path
        return _scan([file]) if file.exists() else None

    # Small documents

    def write_json(self, path: str, document: Any) -> None:
        """Write a JSON document, replacing what was there."""
        atomic_write(self.root / path, json.dumps(document, indent=1, sort_keys=True).encode())

    def read_json(self, path: str) -> Any:
        """A JSON document, or None if there is none."""
        file = self.root / path
        return json.loads(file.read_text()) if file.exists() else None

    def documents(self, folder: str) -> list[str]:
        """Names, without suffix, of the JSON documents in a folder, sorted."""
        return sorted(path.name.removesuffix(".json") for path in (self.root / folder).glob("[!.]*.json"))

    # Things made once

    def write_once(self, path: str, data: bytes) -> None:
        """Write a file that is named by its content: if it is there, it is the same."""
        if not (self.root / path).exists():
            atomic_write(self.root / path, data)

    def create_folder(self, path: str, fill: Callable[[Path], None]) -> bool:
        """Create a folder whole, or not at all; False if it exists already (and nothing is changed).

        Args:
            path: the folder.
            fill: writes the contents into the temporary folder that it is given.
        """
        final = self.root / path
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.exists():
            return False
        temporary = Path(tempfile.mkdtemp(dir=final.parent, prefix=".making-"))
        try:
            temporary.chmod(0o755)
            fill(temporary)
            for file in temporary.rglob("*"):
                if file.is_file():
                    _sync(file)
            try:
                # A rename onto a folder that has content fails, so of two makers one wins.
                temporary.rename(final)
            except OSError:
                if final.exists():
                    return False
                raise
            _sync(final.parent)
            return True
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def compare_and_swap(self, path: str, expected: str | None, new: str) -> bool:
        """Replace a small text if it still reads `expected` (None: does not exist); False if it does not."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        with (file.parent / f".{file.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            current = self.read_text(path)
            if current != expected:
                return False
            atomic_write(file, new.encode())
            return True

    def read_text(self, path: str) -> str | None:
        """A small text, or None if there is none."""
        file = self.root / path
        return file.read_bytes().decode() if file.exists() else None

    def path(self, relative: str) -> Path:
        """The place of a file or folder on this machine's disk."""
        return self.root / relative


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
        data = _parquet_bytes(frame, {})
        name = f"part-{bytes_digest(data)}"
        atomic_write(self._warehouse.path(f"{self.folder}/{name}.parquet"), data)
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
        with _opened(self._warehouse.path(f"{self.folder}/{name}.parquet")) as stream:
            ids = pl.read_parquet(stream, columns=["sample_id"])
        return ids.select("sample_id", part=pl.lit(name))

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


def _scan(files: list[Path]) -> pl.LazyFrame:
    # Without a schema, Polars opens the first file twice, and a writer may replace it in between. Tables
    # with open columns differ in these while they are made anew: a scan has the columns of all of them.
    schema: dict[str, pl.DataType] = {}
    for file in files:
        with _opened(file) as stream:
            schema |= pl.read_parquet_schema(stream)
    return pl.scan_parquet(files, schema=schema, missing_columns="insert", hive_partitioning=False, glob=False)


@contextmanager
def _opened(file: Path) -> Iterator[BinaryIO]:
    """A Parquet file to be read; what Polars says of a damaged one becomes an error that names it."""
    with file.open("rb") as stream:
        try:
            yield stream
        except pl.exceptions.ComputeError as error:
            raise WarehouseError(f"{file} is damaged ({error}): delete it, and it is made again when due") from error


def _parquet_bytes(frame: pl.DataFrame, metadata: Mapping[str, str]) -> bytes:
    buffer = io.BytesIO()
    frame.write_parquet(buffer, compression="zstd", metadata=dict(metadata))
    return buffer.getvalue()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
