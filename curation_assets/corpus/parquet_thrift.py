"""Read Thrift's compact protocol as far as a Parquet file needs it: page headers and the footer.

The footer is read here because pyarrow aborts the process on a damaged footer that declares an encrypted column.
"""

from __future__ import annotations

import io
from typing import IO, Any

LONGEST_HEADER = 2**24
# Types of Thrift's compact protocol; 1 and 2 are true and false, without bytes of their own.
_BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT, _UUID = range(3, 14)
_DEEPEST = 8
_END = 8
"""Bytes behind the footer: its length, and PAR1."""


def read_footer(stream: IO[bytes]) -> dict[int, Any]:
    """Return the footer of a Parquet file (FileMetaData).

    Raises:
        ValueError: the bytes are not a footer.
    """
    size = stream.seek(0, io.SEEK_END)
    stream.seek(max(0, size - _END))
    length = int.from_bytes(stream.read(4), "little")
    if length + _END > size:
        raise ValueError("the footer is longer than the file")
    stream.seek(size - _END - length)
    return Thrift(io.BytesIO(stream.read(length)), length).struct()


def whole(value: object) -> int:
    """Return a size or position.

    Raises:
        ValueError: it is missing or negative.
    """
    if not isinstance(value, int) or value < 0:
        raise ValueError("a size is missing, or negative")
    return value


class Thrift:
    """Reads structures of a stream, of so many bytes at most."""

    def __init__(self, stream: IO[bytes], longest: int = LONGEST_HEADER) -> None:
        self._stream = stream
        self._left = longest

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """The fields of a structure by number: whole numbers, structures and lists of them; others are passed over."""
        if depth > _DEEPEST:
            raise ValueError("nested too deeply")
        fields: dict[int, Any] = {}
        number = 0
        while kind := self._byte():
            delta, kind = kind >> 4, kind & 0x0F
            number = number + delta if delta else self._zigzag()
            fields[number] = self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (1, 2):
            return kind == 1
        if kind in (_I16, _I32, _I64):
            return self._zigzag()
        if kind == _STRUCT:
            return self.struct(depth + 1)
        if kind in (_LIST, _SET):
            return self._list(depth)
        if kind == _MAP:
            self._map(depth)
        else:
            sizes = {_BYTE: 1, _DOUBLE: 8, _UUID: 16}
            if kind != _BINARY and kind not in sizes:
                raise ValueError(f"there is no type {kind}")
            self._skip(self._varint() if kind == _BINARY else sizes[kind])
        return None

    def _list(self, depth: int) -> list[Any]:
        head = self._byte()
        count = self._varint() if head >> 4 == 15 else head >> 4
        return self._items(count, (head & 0x0F,), depth)

    def _map(self, depth: int) -> None:
        count = self._varint()
        if count:
            kinds = self._byte()
            self._items(count, (kinds >> 4, kinds & 0x0F), depth)

    def _items(self, count: int, kinds: tuple[int, ...], depth: int) -> list[Any]:
        if depth > _DEEPEST or count > self._left:
            raise ValueError("a list that is too long")
        # In a list, truth has a byte of its own.
        kinds = tuple(_BYTE if kind in (1, 2) else kind for kind in kinds)
        return [self._value(kind, depth + 1) for _ in range(count) for kind in kinds]

    @property
    def place(self) -> int:
        """The position in the stream."""
        return self._stream.tell()

    def _byte(self) -> int:
        self._left -= 1
        data = self._stream.read(1)
        if not data or self._left < 0:
            raise ValueError("it ends in the middle of a value")
        return data[0]

    def _skip(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise ValueError("it ends in the middle of a value")
        self._stream.seek(count, 1)

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
            if shift > 63:
                raise ValueError("a number that is too long")

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
