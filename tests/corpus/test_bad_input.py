"""Everything that can be wrong with a file or a row, and what comes of it."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation_assets.corpus.containers import Line, decode, line_groups
from curation_assets.corpus.drafts import REASONS
from curation_assets.corpus.raw_rows import EXCERPT_CHARS
from curation_assets.corpus.reading import Account, read_shard
from tests.corpus.helpers import accounted, corpus, gz, jsonl, parquet, read, reasons

GOOD = {"prompt": "2 + 2?", "response": "4"}
LINE = jsonl(GOOD)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"", "a.jsonl"),
        (b"\n \r\n\n", "a.jsonl"),
        (b"\xef\xbb\xbf", "a.jsonl"),
        (b"", "a.jsonl.gz"),
        (gz(b""), "a.jsonl.gz"),
        (b"", "a.parquet"),
        (parquet(GOOD)[:0], "a.parquet"),
    ],
)
def test_empty_file(data: bytes, name: str) -> None:
    rows = read(data, name)
    assert (rows.rows_in, rows.accepted.height, rows.format) == (0, 0, "unknown")
    assert reasons(rows) == [(-1, -1, "empty_file")]
    assert rows.file_problem is not None
    assert "empty" in rows.file_problem
    assert "Write it again" in rows.file_problem


def test_parquet_without_rows_is_empty() -> None:
    stream = io.BytesIO()
    pl.DataFrame(schema={"prompt": pl.String, "response": pl.String}).write_parquet(stream)
    assert reasons(read(stream.getvalue(), "a.parquet")) == [(-1, -1, "empty_file")]


@pytest.mark.parametrize(
    ("data", "name", "reason"),
    [
        (LINE, "a.jsonl.gz", "not_gzip"),
        (LINE, "a.parquet", "not_parquet"),
        (b"PAR1" + LINE + b"PAR1", "a.parquet", "not_parquet"),
        (LINE, "a.csv", "unknown_extension"),
        (Path("no/such/file.jsonl"), "a.jsonl", "unreadable"),
    ],
)
def test_a_file_that_cannot_be_read_at_all(data: bytes | Path, name: str, reason: str) -> None:
    rows = read(data, name)
    assert reasons(rows) == [(-1, -1, reason)]
    assert rows.rows_in == 0
    assert rows.file_problem


def test_truncated_gzip_keeps_the_rows_before_the_cut() -> None:
    many = [{"prompt": f"q{i}", "response": f"{zlib.crc32(b'%d' % i)}"} for i in range(2000)]
    whole = gz(jsonl(*many))
    rows = read(whole[: len(whole) // 2], "a.jsonl.gz")
    kept = rows.accepted.height
    assert 0 < kept < 2000
    assert reasons(rows) == [(kept, -1, "truncated_gzip")]
    assert rows.accepted["response"].to_list() == [row["response"] for row in many[:kept]]
    assert rows.rows_in == kept + 1
    assert rows.file_problem is not None
    assert f"row {kept}" in rows.file_problem
    assert rows.rejected["excerpt"][0].startswith('{"prompt":"q')


def test_gzip_cut_in_its_header_and_in_its_checksum() -> None:
    assert reasons(read(gz(LINE)[:5], "a.jsonl.gz")) == [(0, -1, "truncated_gzip")]
    cut = read(gz(LINE)[:-4], "a.jsonl.gz")
    assert (cut.accepted.height, reasons(cut)) == (1, [(1, -1, "truncated_gzip")])


def test_damaged_gzip() -> None:
    wrong_sum = bytearray(gz(LINE))
    wrong_sum[-5] ^= 1
    rows = read(bytes(wrong_sum), "a.jsonl.gz")
    assert (rows.accepted.height, reasons(rows)) == (1, [(1, -1, "damaged_gzip")])
    assert rows.file_problem
    garbage = read(gz(LINE) + b"garbage", "a.jsonl.gz")
    assert (garbage.accepted.height, reasons(garbage)) == (1, [(1, -1, "damaged_gzip")])


def test_several_gzip_members_are_one_file() -> None:
    assert read(gz(LINE) + gz(LINE), "a.jsonl.gz").accepted.height == 2


def test_a_bomb_is_not_unpacked_into_memory() -> None:
    bomb = gz(LINE + b"x" * 50_000_000 + b"\n" + LINE)
    assert len(bomb) < 100_000
    rows = read(bomb, "a.JSONL.GZ", max_row_bytes=10_000)
    assert reasons(rows) == [(1, -1, "row_too_long")]
    assert rows.accepted["row"].to_list() == [0, 2]


def test_ten_megabyte_line() -> None:
    long = jsonl({"prompt": "q", "response": "x" * 10_000_000})
    rows = read(LINE + long + LINE)
    assert reasons(rows) == [(1, -1, "row_too_long")]
    assert rows.rejected["excerpt"][0] == long[:EXCERPT_CHARS].decode()
    assert rows.accepted["row"].to_list() == [0, 2]
    assert read(LINE + long + LINE, max_row_bytes=11_000_000).accepted.height == 3


def test_long_rows_of_parquet() -> None:
    rows = read(parquet(GOOD, GOOD | {"response": "x" * 5000}), "a.parquet", max_row_bytes=2000)
    assert (rows.accepted.height, reasons(rows)) == (1, [(1, -1, "row_too_long")])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"hello", "not_json"),
        (b'{"prompt": "q"', "not_json"),
        (b'{"prompt": "q", "response": NaN}', "missing_response"),
        (b"[1, 2]", "not_object"),
        (b'"text"', "not_object"),
        (b"null", "not_object"),
        (b'{"prompt": "q\x00", "response": "r"}', "nul_byte"),
        (b'{"prompt": "q\\u0000", "response": "r"}', "nul_byte"),
        (b'{"prompt": "q", "response": "r\\u0000"}', "nul_byte"),
        (b'{"prompt": "q\xff", "response": "r"}', "invalid_utf8"),
        (b'{"prompt": "q\\ud800", "response": "r"}', "invalid_unicode"),
        (b'{"prompt": "q\\udc00", "response": "r"}', "invalid_unicode"),
        (b"[" * 100_000, "nested_too_deep"),
        (b'{"prompt": "q", "response": "r", "x": ' + b"[" * 600 + b"]" * 600 + b"}", "nested_too_deep"),
        (b'{"prompt": "q"}', "missing_response"),
        (b'{"prompt": "q", "response": null}', "missing_response"),
        (b'{"prompt": "q", "responses": []}', "missing_response"),
        (b'{"prompt": "q", "response": " \\n\\t"}', "empty_response"),
        (b'{"response": "r"}', "missing_prompt"),
        (b'{"prompt": "  ", "response": "r"}', "missing_prompt"),
        (b'{"prompt": 5, "response": "r"}', "wrong_type"),
        (b'{"prompt": [1], "response": "r"}', "wrong_type"),
        (b'{"prompt": {"a": 1}, "response": "r"}', "wrong_type"),
        (b'{"prompt": "q", "response": 5}', "wrong_type"),
        (b'{"prompt": "q", "response": {"a": 1}}', "wrong_type"),
        (b'{"prompt": "q", "response": [[1]]}', "wrong_type"),
        (b'{"prompt": "q", "response": "r", "steps": ["s"]}', "steps_not_in_response"),
        (b'{"prompt": "q", "response": "r", "image": "no.png"}', "image_missing"),
        (b'{"prompt": "q", "response": "r", "image": "../no.png"}', "image_outside_folder"),
        (b"{}", "missing_response"),
    ],
)
def test_bad_rows_are_rejected_and_the_others_go_on(line: bytes, reason: str, tmp_path: Path) -> None:
    rows = read(LINE + line + b"\n" + LINE, images_root=tmp_path, format="prompt_response")
    if (1, -1, "missing_prompt") in reasons(rows) and line == b"{}":
        reason = "missing_prompt"
    assert reasons(rows) == [(1, -1, reason)]
    assert rows.accepted["row"].to_list() == [0, 2]
    assert rows.file_problem is None
    (rejected,) = rows.rejected.to_dicts()
    assert len(rejected["excerpt"]) <= EXCERPT_CHARS
    assert "\0" not in rejected["excerpt"]
    assert rejected["excerpt"][:5] == line.decode("utf-8", errors="replace")[:5]
    assert rejected["detail"]


def test_rows_of_an_unknown_shape() -> None:
    rows = read(jsonl({"a": 1}, {"b": 2}))
    assert reasons(rows) == [(0, -1, "unknown_format"), (1, -1, "unknown_format")]
    assert rows.format == "unknown"
    assert rows.file_problem is not None
    assert "corpus.columns" in rows.file_problem


def test_a_row_of_another_shape_than_the_file() -> None:
    rows = read(LINE * 3 + jsonl({"messages": []}))
    assert rows.format == "prompt_response"
    assert rows.accepted.height == 3
    assert rows.rejected["row"].to_list() == [3]


def test_harmless_oddities() -> None:
    plain = read(LINE * 3)
    odd = read(b"\xef\xbb\xbf" + LINE.replace(b"\n", b"\r\n") + LINE + LINE.rstrip())
    assert plain.accepted.equals(odd.accepted)
    assert odd.rejected.is_empty()
    gaps = read(b"\n" + LINE + b"\r\n  \n" + LINE)
    assert (gaps.accepted["row"].to_list(), gaps.rows_in) == ([1, 4], 2)
    twice = read(b'{"prompt": "a", "prompt": "q", "response": "r"}')
    assert '"q"' in twice.accepted["messages"][0]


def test_duplicate_rows_all_arrive() -> None:
    rows = read(LINE * 3)
    assert rows.accepted["row"].to_list() == [0, 1, 2]
    assert rows.accepted["sample_id"].n_unique() == 1


def test_one_bad_candidate_is_rejected_by_its_index() -> None:
    rows = read(jsonl({"prompt": "q", "responses": ["a", " ", "b"]}, {"prompt": "q", "responses": ["", None]}))
    assert rows.accepted.select("row", "candidate").rows() == [(0, 0), (0, 2)]
    assert reasons(rows) == [(0, 1, "empty_response"), (1, -1, "empty_response")]
    assert accounted(rows) == Account(2, 1, 1, 3, 2, 1, balanced=True)


def test_account_notices_what_is_lost_or_doubled() -> None:
    rows = read(LINE * 3 + b"bad\n")
    for broken in (rows.accepted.head(2), rows.accepted.vstack(rows.accepted.head(1))):
        fake = type(rows)(broken, rows.rejected, rows.rows_in, rows.candidates_in, rows.format, None)
        assert not accounted(fake).balanced
    fake = type(rows)(rows.accepted, rows.rejected.head(0), rows.rows_in, rows.candidates_in, rows.format, None)
    assert not accounted(fake).balanced


def test_parquet_types_become_rows() -> None:
    rows = read(parquet(GOOD | {"n": 1, "tags": ["x"], "made": {"by": "m"}, "raw": b"\x00\xff"}), "a.parquet")
    assert rows.accepted["extra"].to_list() == ['{"made":{"by":"m"},"n":1,"raw":"AP8=","tags":["x"]}']


def test_parquet_times_and_missing_numbers() -> None:
    stream = io.BytesIO()
    times = pa.array([1_700_000_000_000_000_001, None], pa.timestamp("ns"))
    answers = pa.array([4.0, float("nan")])
    table = {"prompt": ["q", "q"], "response": ["r", "r"], "answer": answers, "made": times}
    pq.write_table(pa.table(table), stream)
    rows = read(stream.getvalue(), "a.parquet")
    assert rows.accepted["answer"].to_list() == ["4", None]
    assert rows.accepted["extra"].to_list() == ['{"made":"2023-11-14T22:13:20"}', '{"made":null}']


def test_detection_gives_up_on_a_file_of_broken_lines() -> None:
    rows = read(b"bad\n" * 1500 + LINE)
    assert rows.rows_in == 1501
    assert reasons(rows)[-1] == (1500, -1, "unknown_format")
    assert rows.file_problem is not None
    assert "1500 times not_json" in rows.file_problem


ODD_COLUMNS: dict[str, tuple[Any, object]] = {
    "decimal": (pa.array([Decimal("1.10")], pa.decimal128(38, 2)), 1.1),
    "long decimal": (pa.array([Decimal("1234567890123456789.25")], pa.decimal128(38, 2)), "1234567890123456789.25"),
    "wide integer": (pa.array([Decimal(10**60)], pa.decimal256(61, 0)), str(10**60)),
    "decimals in a list": (pa.array([[Decimal("1.10")]], pa.list_(pa.decimal128(9, 2))), ["1.10"]),
    "decimals in a struct": (pa.array([{"cost": Decimal("1.10")}]), {"cost": "1.10"}),
    "text view": (pa.array(["u"], pa.string_view()), "u"),
    "bytes view": (pa.array([b"u"], pa.binary_view()), "dQ=="),
    "list of text views": (pa.array([["u"]], pa.list_(pa.string_view())), ["u"]),
    "list view": (pa.array([["a"]], pa.list_view(pa.string())), ["a"]),
    "zone of an odd spelling": (pa.array([0], pa.timestamp("us", "UTC+08:00")), "1970-01-01T00:00:00+00:00"),
    "zone Z": (pa.array([0], pa.timestamp("us", "Z")), "1970-01-01T00:00:00+00:00"),
    "nanoseconds": (pa.array([1001], pa.timestamp("ns")), "1970-01-01T00:00:00.000001"),
    "nanoseconds in a struct": (
        pa.array([{"t": 1001}], pa.struct({"t": pa.timestamp("ns")})),
        {"t": "1970-01-01T00:00:00.000001"},
    ),
    "time in nanoseconds": (pa.array([1000], pa.time64("ns")), "00:00:00.000001"),
    "duration in nanoseconds": (pa.array([10**9], pa.duration("ns")), "0:00:01"),
    "duration of millions of years": (pa.array([2**62], pa.duration("s")), str(2**62)),
    "year 10000": (pa.array([254402300800000000], pa.timestamp("us")), "10031-09-09 01:46:40.000000"),
    "date in year 10000": (pa.array([2932897], pa.date32()), "10000-01-01"),
    "year 10000 in a struct": (
        pa.array([{"d": 2932897}], pa.struct({"d": pa.date32()})),
        {"d": "10000-01-01"},
    ),
}


@pytest.mark.parametrize("name", ODD_COLUMNS)
@pytest.mark.parametrize("nulls", [False, True])
def test_a_column_that_nobody_uses_makes_no_file_unreadable(tmp_path: Path, name: str, nulls: bool) -> None:
    column, shown = ODD_COLUMNS[name]
    if nulls:
        column, shown = pa.nulls(1, column.type), None
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"prompt": ["q"], "response": ["One. Two."], "x": column}), path)
    found = read(path, "a.parquet")
    assert found.file_problem is None
    extra = orjson.loads(found.accepted["extra"].item())
    if name in ("long decimal", "wide integer") and not nulls:
        # A number with more digits than a double holds.
        assert f'"x":{shown}' in found.accepted["extra"].item()
    else:
        assert extra.get("x") == shown


def test_a_column_inside_which_nothing_can_be_read_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    far = pa.array([[2932897]], pa.list_(pa.date32()))
    pq.write_table(pa.table({"prompt": ["q"], "response": ["One. Two."], "x": far}), path)
    found = read(path, "a.parquet")
    assert "column x of type list" in orjson.loads(found.accepted["extra"].item())["x"]


def test_decimals_are_answers_and_rewards(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    digits = pa.array([Decimal("717897987691852588770249")], pa.decimal128(38, 0))
    reward = pa.array([Decimal("0.25")], pa.decimal128(9, 2))
    table = {"prompt": ["q"], "response": ["One. Two."], "answer": digits, "reward": reward}
    pq.write_table(pa.table(table), path)
    found = read(path, "a.parquet").accepted
    assert found["answer"].item() == "717897987691852588770249"
    assert found["reward"].item() == 0.25


def test_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = [pa.array(["q"]), pa.array(["One."]), pa.array(["Two."])]
    pq.write_table(pa.Table.from_arrays(texts, names=["prompt", "response", "response"]), path)
    found = read(path, "a.parquet")
    assert reasons(found) == [(-1, -1, "duplicate_columns")]
    assert "'response'" in str(found.file_problem)


def test_texts_stored_as_bytes_are_texts(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"prompt": [b"q"], "response": ["Größe".encode()]}), path)
    assert read(path, "a.parquet").accepted["response"].to_list() == ["Größe"]


def test_parquet_text_that_is_not_utf8() -> None:
    bad = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"\xffr")]
    )
    stream = io.BytesIO()
    pq.write_table(pa.table({"prompt": ["q", "q"], "response": bad}), stream)
    rows = read(stream.getvalue(), "a.parquet")
    assert reasons(rows) == [(0, -1, "invalid_utf8")]
    assert rows.accepted["row"].to_list() == [1]


def test_damaged_parquet_keeps_the_rows_before() -> None:
    stream = io.BytesIO()
    texts = [f"{zlib.crc32(b'%d' % i)}" for i in range(4000)]
    pl.DataFrame({"prompt": texts, "response": texts}).write_parquet(stream, row_group_size=1000, compression="zstd")
    data = bytearray(stream.getvalue())
    for position in range(len(data) * 3 // 5, len(data) * 4 // 5):
        data[position] = 0
    rows = read(bytes(data), "a.parquet")
    kept = rows.accepted.height
    assert 0 < kept < 4000
    assert reasons(rows) == [(kept, -1, "damaged_parquet")]
    assert rows.accepted["response"].to_list() == texts[:kept]


def test_every_reason_is_explained() -> None:
    found = read(LINE + b"bad\n")
    assert set(found.rejected["reason"]) <= set(REASONS)


BYTES = st.one_of(
    st.binary(max_size=300),
    st.lists(st.sampled_from([LINE, b"{", b"\n", b'"', b"[1]", b"\xff", b"\0", b'{"prompt":1}\n', b"\r"])).map(
        b"".join
    ),
)


@settings(max_examples=300, deadline=None)
@given(BYTES, st.sampled_from(["a.jsonl", "a.jsonl.gz", "a.parquet"]), st.booleans())
def test_any_bytes_are_read_without_raising_and_accounted_for(data: bytes, name: str, packed: bool) -> None:
    rows = read(gz(data) if packed and name == "a.jsonl.gz" else data, name)
    assert set(rows.rejected["reason"]) <= set(REASONS)
    if name == "a.jsonl" or (packed and name == "a.jsonl.gz"):
        lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
        assert rows.rows_in == sum(bool(line.strip()) for line in lines)


GZ_FILE = gz(jsonl(*({"prompt": "q", "response": f"r{i}"} for i in range(40))))
PARQUET_FILE = parquet(*({"prompt": "q", "response": f"r{i}"} for i in range(40)))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_cut_and_flipped_files_are_accounted_for(data: st.DataObject) -> None:
    whole, name = data.draw(st.sampled_from([(GZ_FILE, "a.jsonl.gz"), (PARQUET_FILE, "a.parquet")]))
    bad = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    if bad and name == "a.jsonl.gz":
        bad[data.draw(st.integers(0, len(bad) - 1))] ^= data.draw(st.integers(1, 255))
    rows = read(bytes(bad), name)
    assert set(rows.rejected["reason"]) <= set(REASONS)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text("ab \0"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "text", "type"]), inner, max_size=3)
    ),
    max_leaves=6,
)
FIELDS = ["prompt", "response", "responses", "answer", "steps", "messages", "conversations", "chosen", "rejected"]
FIELDS += ["trajectory", "instruction", "input", "output", "history", "system", "image", "reward", "correct", "model"]
FIELDS += ["reasoning", "distilled_answer_string", "image_url"]
FORMATS = ["auto", "messages", "sharegpt", "alpaca", "prompt_response", "preference", "mmathcot", "openthoughts"]
FORMATS += ["m23k", "ultrainteract"]


@settings(max_examples=250, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=8), max_size=4), st.sampled_from(FORMATS))
def test_any_json_is_read_without_raising_and_accounted_for(rows: list[object], form: str) -> None:
    found = read(jsonl(*rows), format=form)
    assert found.rows_in == len(rows)
    assert set(found.rejected["reason"]) <= set(REASONS)


def flat(groups: Iterable[list[bytes] | Line]) -> list[Line]:
    return [one for group in groups for one in ([group] if isinstance(group, Line) else map(Line, group))]


@given(st.lists(st.sampled_from([b"ab", b"\n", b"c", b"\n\n"])).map(b"".join), st.integers(1, 5), st.integers(1, 6))
def test_lines_equal_a_plain_split(data: bytes, limit: int, block: int) -> None:
    """The twin reads the whole text at once."""
    stream = io.BytesIO(data)
    lines = flat(line_groups(lambda _: stream.read(block), limit))
    plain = data.split(b"\n")
    plain = plain if plain[-1] else plain[:-1]
    assert [line.too_long for line in lines] == [len(text) > limit for text in plain]
    assert [line.data for line in lines if not line.too_long] == [text for text in plain if len(text) <= limit]
    assert all(text.startswith(line.data) for line, text in zip(lines, plain, strict=True))


def test_a_reader_that_fails_ends_the_lines() -> None:
    blocks = iter([b"one\ntw"])

    def reader(_: int) -> bytes:
        try:
            return next(blocks)
        except StopIteration:
            raise OSError("gone") from None

    first, second = flat(line_groups(reader, 100))
    assert first == Line(b"one")
    assert second.data == b"tw"
    assert isinstance(second.broken, OSError)


def test_decode_takes_an_object() -> None:
    assert decode(b' {"a": [1]} ') == ({"a": [1]}, 0)


def test_numbers_keep_every_digit() -> None:
    line = (
        b'{"prompt": "3 to the 50?", "response": "Large.", "answer": 717897987691852588770249, "reward": 0.5,'
        b' "n": [3.14159265358979323846, 0.1, -18446744073709551616, 18446744073709551615], "id": "%s"}\n'
    ) % (b"7" * 5000)
    rows = read(line + LINE, "a.jsonl")
    first = rows.accepted.row(0, named=True)
    assert first["answer"] == "717897987691852588770249"
    assert first["reward"] == 0.5
    assert '"n":[3.14159265358979323846,0.1,-18446744073709551616,18446744073709551615]' in first["extra"]
    assert rows.accepted.height == 2
    assert reasons(read(b" 0.00012345678901234567\n" + LINE, "a.jsonl")) == [(0, -1, "not_object")]
    huge = read(b'{"prompt": "p", "response": "r", "n": %s}\n' % (b"9" * 5000), "a.jsonl")
    assert huge.accepted.height + huge.rejected.height == 1


def test_nan_and_infinity_become_null_and_are_counted() -> None:
    line = b'{"prompt": "NaN?", "response": "a \\"NaN\\" b, Infinity", "score": NaN, "n": [-Infinity, Infinity, 1]}\n'
    rows = read(LINE + line + b'{"prompt": NaNa}\n' + b'{"a": NaN,}\n', "a.jsonl")
    assert rows.not_finite == 3
    found = rows.accepted.row(1, named=True)
    assert found["response"] == 'a "NaN" b, Infinity'
    assert found["extra"] == '{"n":[null,null,1],"score":null}'
    assert reasons(rows) == [(2, -1, "not_json"), (3, -1, "not_json")]


def test_nan_and_infinity_of_parquet_are_counted_at_any_depth() -> None:
    nan, infinity = float("nan"), float("inf")
    half = pa.array([1.0, nan, None], pa.float16())
    table = pa.table(
        {
            "prompt": ["a", "b", "c"],
            "response": ["r"] * 3,
            "x": [1.0, nan, -infinity],
            "half": half,
            "lists": [[nan], None, [1.0, infinity]],
            "structs": [{"y": nan}, None, {"y": 1.0}],
            "maps": pa.array([[("k", nan)], None, [("k", 1.0)]], pa.map_(pa.string(), pa.float64())),
        }
    )
    stream = io.BytesIO()
    pq.write_table(table, stream)
    rows = read(stream.getvalue(), "a.parquet")
    assert (rows.accepted.height, rows.not_finite) == (3, 7)
    assert orjson.loads(rows.accepted["extra"][2])["lists"] == [1.0, None]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'[\n{"prompt": "p", "response": "r"},\n]\n', "the file seems to hold JSON that spans lines"),
        (b'{"prompt": "p" "response": "r"}\n', "at column 16. Write one JSON object per line."),
    ],
)
def test_lines_that_are_not_json_say_where(data: bytes, said: str) -> None:
    details = read(data, "a.jsonl").rejected["detail"].to_list()
    assert all(said in detail for detail in details)
    assert not any("line 1" in detail for detail in details)


def test_deep_rows_with_long_numbers_are_refused_by_name() -> None:
    deep = b'{"prompt": "p", "response": "r", "n": ' + b"[" * 900 + b"1" * 25 + b"]" * 900 + b"}\n"
    rows = read(LINE + deep, "a.jsonl")
    assert rows.accepted.height + rows.rejected.height == 2
    assert set(rows.rejected["reason"]) <= {"nested_too_deep"}


def test_reading_is_fast_enough() -> None:
    """A floor far below what any machine reaches, against loops that are quadratic by accident."""
    import time

    data = jsonl(*({"prompt": f"q{i}", "response": f"r{i}\n#### {i}"} for i in range(5000)))
    begin = time.process_time()
    assert read_shard(data, "s", "a.jsonl", corpus()).accepted.height == 5000
    assert time.process_time() - begin < 5


def test_gzip_and_plain_files_give_the_same_rows(tmp_path: Path) -> None:
    data = jsonl(*({"prompt": "q", "response": f"r{i}"} for i in range(50)))
    (tmp_path / "a.jsonl").write_bytes(data)
    with gzip.open(tmp_path / "a.jsonl.gz", "wb") as stream:
        stream.write(data)
    tables = [read(tmp_path / name, name).accepted for name in ("a.jsonl", "a.jsonl.gz")]
    assert tables[0].equals(tables[1])
    columnar = parquet(*({"prompt": "q", "response": f"r{i}"} for i in range(50)))
    assert tables[0].equals(read(columnar, "a.parquet").accepted)
