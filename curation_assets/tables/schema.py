"""Table definitions: columns with types, units and meaning, and conforming a frame to them."""

from __future__ import annotations

from dataclasses import dataclass, field

import polars as pl
from polars.datatypes import DataType, DataTypeClass

PolarsType = DataType | DataTypeClass


class TableError(ValueError):
    """A frame's columns or types do not match its table's definition."""


@dataclass(frozen=True)
class Column:
    """A column's definition; `unit` is empty for values without a unit."""

    dtype: PolarsType
    meaning: str
    unit: str = ""
    nullable: bool = False


@dataclass(frozen=True)
class Table:
    """A table's contract.

    `open_columns` is the type of additional columns named in the configuration, if the table allows any.
    """

    name: str
    meaning: str
    columns: dict[str, Column]
    open_columns: PolarsType | None = None
    sort: tuple[str, ...] = field(default=())

    @property
    def schema(self) -> dict[str, PolarsType]:
        """Return column names and Polars types, in order."""
        return {name: column.dtype for name, column in self.columns.items()}

    def empty(self) -> pl.DataFrame:
        """Return a frame of this table without rows."""
        return pl.DataFrame(schema=self.schema)

    def conform(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return the frame with this table's columns in order, cast and sorted.

        Raises:
            TableError: a column is missing or unknown, has the wrong type, or contains nulls although it is not
                nullable.
        """
        missing = [name for name in self.columns if name not in frame.columns]
        unknown = [name for name in frame.columns if name not in self.columns]
        if missing or (unknown and self.open_columns is None):
            raise TableError(f"table {self.name}: missing columns {missing}, unknown columns {unknown}")
        types = self.schema | {name: self.open_columns for name in unknown if self.open_columns is not None}
        wrong = [
            f"{name} is {frame.schema[name]}" for name, dtype in types.items() if not _fits(frame.schema[name], dtype)
        ]
        if wrong:
            raise TableError(f"table {self.name}: columns with the wrong type: {', '.join(wrong)}")
        try:
            frame = frame.select(pl.col(name).cast(dtype) for name, dtype in types.items())
        except pl.exceptions.PolarsError as error:
            raise TableError(f"table {self.name}: {error}") from error
        for name, column in self.columns.items():
            if not column.nullable and frame[name].null_count():
                raise TableError(
                    f"table {self.name}: column {name} is not nullable but contains {frame[name].null_count()} nulls"
                )
        return frame.sort(self.sort, maintain_order=True) if self.sort else frame


def _fits(given: PolarsType, wanted: PolarsType) -> bool:
    """Return whether a cast between the types only changes width, without parsing text or truncating fractions."""
    if given in (wanted, pl.Null):
        return True
    if isinstance(given, pl.Struct) and isinstance(wanted, pl.Struct):
        pairs = zip(given.fields, wanted.fields, strict=False)
        same = len(given.fields) == len(wanted.fields)
        return same and all(one.name == other.name and _fits(one.dtype, other.dtype) for one, other in pairs)
    if isinstance(given, pl.List) and isinstance(wanted, pl.List):
        return _fits(given.inner, wanted.inner)
    if wanted.is_float():
        return given.is_numeric()
    return given.is_integer() and wanted.is_integer()


SAMPLE_ID = Column(pl.String, "hash of prompt, response, answer, explicit steps and image bytes (128 bits, hex)")
PROMPT_ID = Column(pl.String, "hash of the prompt turns and images: the prompt group (128 bits, hex)")
SHARD = Column(pl.String, "partition key of the landing file")
ROW = Column(pl.Int64, "row in the source file, from 0 (blank lines count)")
RESPONSE_TOKENS = Column(pl.Int32, "tokens of the response after truncation, without EOS", "tokens")
RUN_TOKENS = Column(pl.Int32, "tokens processed by the model: prompt, images, response and EOS", "tokens")
SIGNAL_FLAGS = Column(pl.List(pl.String), "why the sample was not measured, or warnings about it")
