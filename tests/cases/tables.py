"""Cases of Parquet files: every type is read, with and without pandas, and the odd column stays in `extra`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from curation_assets.corpus.reading import ShardRows
from tests.cases.findings import Case, Findings, extra_of, turns_of
from tests.corpus.helpers import read

COUNTED = "Count one.\nCount two.\nAnswer: 2"
PLAIN: tuple[dict[str, object], ...] = ({}, {}, {})
DAY = "2024-01-01T00:00:00"


def of_x(*values: object) -> list[dict[str, object]]:
    """Return rows of `extra` that hold the odd column alone."""
    return [{"x": value} for value in values]


def read_table(path: Path, found: Findings, extra: Iterable[Mapping[str, object]]) -> ShardRows:
    """Read a file of counted rows; check its rows and their other fields."""
    wanted = list(extra)
    rows = found.file(path, [COUNTED] * len(wanted))
    asked = [turns_of(rows, row)[0]["content"] for row in range(len(wanted))]
    found.equal(f"{path.name}, prompts", asked, ["a?", "b?", "c?"][: len(wanted)])
    for row, values in enumerate(wanted):
        found.equal(f"{path.name} row {row}, other fields", extra_of(rows, row), values)
    return rows


def parquet_types(folder: Path, found: Findings) -> None:
    """Types, codecs and encodings; only columns of one name refuse the file."""
    landing = folder / "landing"
    for name in ("binary_text", "brotli", "lz4", "zstd_v2"):
        read_table(landing / f"{name}.parquet", found, PLAIN)
    answers = read_table(landing / "answer_types.parquet", found, ({}, {}, {"answer": None}))
    found.equal("decimal answers", answers.accepted["answer"].to_list(), ["2", "2.5", None])
    sources = read_table(landing / "dictionary.parquet", found, PLAIN).accepted["source"].to_list()
    found.equal("sources of a dictionary", sources, ["x", "y", "x"])
    found.file(
        landing / "dup_columns.parquet", {}, {-1: ("duplicate_columns", "several columns have the name 'response'")}
    )
    uuid = "30313233-3435-3637-3839-616263646566"
    read_table(landing / "enum_ext.parquet", found, [{"u": uuid}] * 3)
    read_table(landing / "large_and_view.parquet", found, [{"tags": ["a"]}, {"tags": None}, {"tags": []}])
    read_table(landing / "pandas_index.parquet", found, [{"__index_level_0__": number} for number in (5, 6, 7)])
    empty = dict.fromkeys(("b", "bin", "fsb", "fsl", "ll", "m", "null", "s"))
    nested: dict[str, object] = {"b": True, "bin": "/wA=", "fsb": "YWI=", "fsl": [1.0, 2.0], "ll": [[1], [2, 3]]}
    last: dict[str, object] = {"b": False, "bin": "", "fsb": "Y2Q=", "fsl": [3.0, 4.0], "ll": [[]], "m": []}
    read_table(
        landing / "nested.parquet",
        found,
        [
            nested | {"m": [["k", 1]], "null": None, "s": {"a": {"b": [{"c": "x"}]}}},
            empty,
            last | {"null": None, "s": {"a": None}},
        ],
    )
    found.file(
        landing / "nulls.parquet", [COUNTED], {1: ("missing_prompt", "missing"), 2: ("missing_response", "missing")}
    )
    _dotted(landing / "dotted.parquet", found)
    _numbers(landing / "numbers.parquet", found)
    _times(landing / "timestamps.parquet", found)


def _dotted(path: Path, found: Findings) -> None:
    """Check columns whose names have dots: their names are no format's, but can be mapped."""
    unknown = ("unknown_format", "unknown fields: data.output, data.question")
    found.file(path, {}, dict.fromkeys(range(3), unknown))
    mapped = found.file(path, [COUNTED] * 3, columns={"prompt": "data.question", "response": "data.output"})
    found.equal("fields of mapped names", [extra_of(mapped, row) for row in range(3)], list(PLAIN))


def _numbers(path: Path, found: Findings) -> None:
    empty = dict.fromkeys(("answer", "dec", "dec256", "f", "f16", "u64"))
    first = {"dec": 1.1, "dec256": 10**60, "f": None, "f16": 1.5, "u64": 2**64 - 1}
    last = {"dec": 2.0, "dec256": None, "f": 1.0, "f16": None, "u64": 0}
    rows = read_table(path, found, [first, empty, last])
    found.equal("answers of floats", rows.accepted["answer"].to_list(), ["2", None, None])
    found.equal("NaN and Infinity, counted", rows.not_finite, 4)


def _times(path: Path, found: Findings) -> None:
    rows = found.file(path, [COUNTED] * 3)
    empty = dict.fromkeys(("date", "dur", "far", "ns", "time", "us_tz"))
    found.equal("rows without times", [extra_of(rows, row) for row in (1, 2)], [empty, empty | {"ns": START}])
    first = extra_of(rows, 0)
    for name, start in (
        ("date", "2024-01-01"),
        ("dur", "0:00:03"),
        ("far", "10031-09-09"),
        ("ns", "2023-11-14T22:13:20"),
        ("time", "01:02:03"),
        ("us_tz", "2024-01-01T01:00:00+01:00"),
    ):
        found.holds(f"{name}: expected {start}..., found {first[name]}", str(first[name]).startswith(start))


START = "1970-01-01T00:00:00"
ODD: dict[str, list[dict[str, object]]] = {
    "binary_view": of_x("dQ==", "dg==", None),
    "bool8": of_x(True, None, False),
    "date": of_x("2024-01-01", None, None),
    "decimal128": of_x(1.1, None, 2.0),
    "decimal256": of_x(10**60, None, None),
    "decimal_in_list": of_x(["1.10"], None, []),
    "decimal_in_struct": of_x({"cost": "1.10"}, None, None),
    "decimal_small": of_x(1.1, None, 2.0),
    "duration_ns": of_x("0:00:01", None, None),
    "f16": of_x(1.5, None, None),
    "f_nan_inf": of_x(None, None, 1.0),
    "interval_like_map": of_x([["k", 1]], None, []),
    "large_list": of_x(["a"], None, []),
    "list_of_string_view": of_x(["u"], [], None),
    "list_view": of_x(["a"], None, []),
    "polars_cat": of_x("a", "b", None),
    "polars_decimal": of_x(1.5, None, None),
    "polars_enum": of_x("a", "b", "a"),
    "polars_to_arrow_newest": list(map(dict, PLAIN)),
    "run_end": of_x("a", "a", "b"),
    "string_view": of_x("u", "v", None),
    "time_ns": of_x("01:00:00", None, None),
    "ts_min": of_x("<value out of range: -4611686018427387904>", None, None),
    "ts_ns": of_x("2023-11-14T22:13:20.123456", None, START),
    "ts_ns_in_list": of_x(["2023-11-14T22:13:20.123456"], None, [START]),
    "ts_ns_in_struct": of_x({"t": "2023-11-14T22:13:20.123456"}, None, {"t": START}),
    "ts_ns_whole": of_x("2023-11-14T22:13:20", None, START),
    "ts_us_tz": of_x("2024-01-01T01:00:00+01:00", None, None),
    "ts_weird_tz": of_x("2024-01-01T00:00:00+00:00", None, None),
    "ts_year_10000": of_x("10031-09-09 01:46:40.000000", None, None),
    "u64": of_x(2**64 - 1, None, 0),
}
"""The odd column of each file, as `extra` holds it."""

ZONES = {
    "tz_06_+0800": "1970-01-01T08:00:00+08:00",
    "tz_11_EST": "1969-12-31T19:00:00-05:00",
    "tz_12_Asia_Calcutta": "1970-01-01T05:30:00+05:30",
}
"""Time zones that are known; times of the others are read as UTC."""


def odd_columns(folder: Path, found: Findings) -> None:
    """A column that nobody uses never refuses a file."""
    landing, zones = folder / "landing", folder / "tz"
    found.equal("files", sorted(path.stem for path in landing.iterdir()), sorted([*ODD, "duckdb_sum"]))
    for name, extra in ODD.items():
        read_table(landing / f"{name}.parquet", found, extra)
    sums = found.file(landing / "duckdb_sum.parquet", ["Count one.\nAnswer: 2"] * 3)
    found.equal("sums of duckdb", [extra_of(sums, row)["x"] for row in range(3)], [0.0, 1.5, 3.0])
    for path in sorted(zones.iterdir()):
        value = 1.25 if path.stem.startswith("dec") else ZONES.get(path.stem, f"{START}+00:00")
        read_table(path, found, of_x(value, None))


WITHOUT_PANDAS = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "pandas":
            raise ModuleNotFoundError("No module named 'pandas'", name="pandas")

sys.meta_path.insert(0, Absent())
from pathlib import Path
from tests.cases.tables import as_json

assert "pandas" not in sys.modules
print(as_json(Path(sys.argv[1])))
"""


def as_json(landing: Path) -> str:
    """Return the rows of every file of a folder, accepted and rejected, as JSON."""
    found = {}
    for path in sorted(landing.iterdir()):
        rows = read(path, path.name)
        accepted = rows.accepted.select("sample_id", "row", "messages", "response", "extra").rows()
        found[path.name] = [accepted, rows.rejected.select("row", "reason", "detail").rows()]
    return json.dumps(found)


def plain_install(folder: Path, found: Findings) -> None:
    """The same rows are read with and without pandas."""
    landing = folder / "w" / "landing"
    for name in ("duration_ns", "time_ns", "ts_ns", "ts_ns_in_struct"):
        read_table(landing / f"{name}.parquet", found, ODD[name])
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), str(root / "resources")])}
    command = [sys.executable, "-c", WITHOUT_PANDAS, str(landing)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    found.equal("exit code without pandas", (result.returncode, result.stderr[-LAST:]), (0, ""))
    found.equal("rows without pandas", result.stdout.strip(), as_json(landing))


LAST = 200
"""Characters of an error's end that a difference shows."""

TABLES = (
    Case("13-parquet-types", "types and codecs of Parquet", parquet_types),
    Case("14-parquet-one-column-kills-file", "odd columns and time zones", odd_columns),
    Case("32-plain-install", "the same rows without pandas", plain_install),
)
