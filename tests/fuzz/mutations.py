"""Bytes changed as bad disks, cut copies and clumsy hands change them."""

from __future__ import annotations

from hypothesis import strategies as st

SIGNS = [b"\0", b"\xff", b"\x80", b"\n", b"\r", b'"', b"\\", b"{", b"}", b"[", b"]", b":", b","]
SIGNS += [b"\xef\xbb\xbf", b"\xe2\x80\xa8"]


@st.composite
def mutated(draw: st.DrawFn, whole: bytes) -> bytes:
    """The bytes with some of them flipped, left out, doubled, moved, or replaced by others."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 6))):
        if not data:
            break
        low = draw(st.integers(0, len(data) - 1))
        high = min(len(data), low + draw(st.sampled_from([1, 1, 2, 4, 8, 64, 1024])))
        how = draw(st.sampled_from(["flip", "set", "drop", "double", "cut", "insert", "copy"]))
        if how == "flip":
            data[low] ^= 1 << draw(st.integers(0, 7))
        elif how == "set":
            data[low] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFE, 0xFF]))
        elif how == "drop":
            del data[low:high]
        elif how == "double":
            data[low:low] = data[low:high]
        elif how == "cut":
            del data[low:]
        elif how == "insert":
            data[low:low] = draw(st.sampled_from(SIGNS) | st.binary(max_size=8))
        else:
            place = draw(st.integers(0, len(data) - 1))
            data[place : place + high - low] = data[low:high]
    return bytes(data)
