"""Files with odd names are carried through or named with the reason, on disk and in S3; no name is taken for SQL."""

from __future__ import annotations

import gzip
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from curation_assets.cli.run_summary import show_summary
from curation_assets.config.config_file import ConfigError, parse_settings
from curation_assets.defs.dry_run import dry_run
from curation_assets.operations.intake import ignored_line
from curation_assets.operations.sql import DuckDBTables, SqlError, _quoted, run_sql
from curation_assets.subsets.stored_tables import read_stored
from curation_assets.workspace.workspace import Workspace
from curation_resources.storage.landing import LONGEST_KEY, file_name, partition_key, printable
from tests.pipeline.workspaces import (
    landed,
    make_workspace,
    release_folder,
    release_subset,
    rows,
    run,
    stored,
    use_bucket,
    write_shard,
)

NAMES = [
    "UPPER.JSONL",
    "two words.jsonl",
    " blank at both ends .jsonl",
    'it\'s "quoted" `so`.jsonl',
    "100% %41 %2F %.jsonl",
    "a#b?c&d=e+f.jsonl",
    "a;b|c>d<e:f,g@h.jsonl",
    "a*b[c]{d,e}?.parquet",
    "back\\slash\\n.jsonl",
    "$HOME ~ $(touch ran) `touch ran`.jsonl",
    "größe 题目 \u05e9\u05dc\u05d5\u05dd.jsonl.gz",
    "e\u0301 and \u00e9.jsonl",
    "\u00e9 and e\u0301.jsonl",
    "👩\u200d👧 🎉.parquet",
    "-rf.jsonl",
    "--config.jsonl",
    "two\nlines\tand\ra\x1b[2Jb.jsonl",
    "\u202egnp.jsonl",
    "a..b...c.jsonl",
    "a.jsonl.jsonl.gz",
    "=2E=2E=2Fx.jsonl",
    "file:a.jsonl",
    "dir with spaces/..x and 'y'/[z] #1.jsonl",
    "-dir/%2e%2e/NUL.jsonl",
    "'; drop table raw_corpus; --.jsonl",
    '"; copy raw_corpus to "ran"; --.jsonl',
    "x" * (LONGEST_KEY - 6) + ".jsonl",
]
HIDDEN = {"dir with spaces/..x and 'y'/[z] #1.jsonl"}
"""Files in folders that begin with a dot: no more looked at than the folders' names say."""
REFUSED = {
    "题" * 40 + ".jsonl": " (its path is too long)",
    "y" * LONGEST_KEY + ".jsonl": " (its path is too long)",
    "a\n.txt": "",
    "no ending": "",
}


def put(folder: Path, names: list[str]) -> dict[str, set[str]]:
    """A file of two rows for each name; what they hold, by name."""
    said = {}
    for number, name in enumerate(names):
        records = [row | {"source": name} for row in rows(2, start=10 * number)]
        write_shard(folder / name, records)
        path = folder / name
        if name.endswith(".gz"):
            path.write_bytes(gzip.compress(path.read_bytes()))
        elif name.endswith(".parquet"):
            pl.DataFrame(records).write_parquet(path.open("wb"))
        os.utime(path, (1e9, 1e9))
        said[name] = {str(record["response"]) for record in records}
    return said


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.slow)])
def place(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where landing area and warehouse lie."""
    use_bucket(request.getfixturevalue("bucket") if request.param == "s3" else None)
    yield request.param
    use_bucket(None)


def test_files_with_odd_names_are_carried_through(place: str, tmp_path: Path, tiny_model: Path) -> None:
    # A file takes many requests, so that of these names every other one has to do; and moto's server has no addresses
    # with line ends.
    taken = [name for name in NAMES[:: 1 if place == "folder" else 2] if place == "folder" or "\n" not in name]
    not_taken = {name: reason for name, reason in REFUSED.items() if place == "folder" or "\n" not in name}
    names = [name for name in taken if name not in HIDDEN]
    workspace = make_workspace(tmp_path / "it's a [we*]ird {place} #1 %20;", tiny_model, {})
    said = put(landed(workspace), taken)
    put(landed(workspace), list(not_taken))
    summary = run(workspace)
    assert (summary.new_shards, summary.rejected) == (len(names), {})
    corpus = read_stored(workspace, "raw_corpus").collect()
    found = corpus.group_by("shard").agg("response", "source")
    assert {file_name(shard): set(texts) for shard, texts, _ in found.iter_rows()} == {
        name: said[name] for name in names
    }
    assert all(set(sources) == {file_name(shard)} for shard, _, sources in found.iter_rows())
    scores = read_stored(workspace, "sample_scores").collect()
    assert len(scores.filter(pl.col("grace").is_not_null())) == 2 * len(names)
    manifest = read_stored(workspace, "score_manifest").collect()
    assert sorted(manifest["path"]) == sorted(names)
    assert {partition_key(name) + ".parquet" for name in names} == {
        path.rsplit("/", 1)[1] for path in stored(workspace, "corpus/raw_corpus", "*.parquet")
    }
    # What is refused is named, here and where a run says what it did.
    refused = sorted(printable(name) + reason for name, reason in not_taken.items())
    assert sorted(workspace.landing.ignored()) == refused
    stream = io.StringIO()
    show_summary(workspace, summary, Console(file=stream, width=10_000, markup=False, emoji=False))
    assert str(ignored_line(workspace.landing.ignored())) in stream.getvalue()
    # A release says where its rows came from.
    release_subset(workspace)
    folder = release_folder(workspace)
    inputs = json.loads((folder / "manifest.json").read_text())["inputs"]
    assert sorted(one["path"] for one in inputs) == sorted(names)
    released = pl.read_parquet((folder / "data" / "train.parquet").read_bytes())
    assert all(text in said[file_name(shard)] for shard, text in released.select("shard", "response").iter_rows())
    # A second run finds nothing new, and one after a file is gone finds it gone.
    again = run(workspace)
    assert (again.new_shards, again.read, sum(again.measured.values())) == (0, 0, 0)
    (landed(workspace) / names[-1]).unlink()
    run(workspace)
    gone = read_stored(workspace, "score_manifest").collect().filter(~pl.col("present"))
    assert gone["path"].to_list() == names[-1:]
    assert not [path for path in tmp_path.rglob("ran") if path.exists()]


def test_a_dry_run_takes_them_too(tmp_path: Path, tiny_model: Path) -> None:
    workspace = make_workspace(tmp_path / "[a]", tiny_model, {})
    put(landed(workspace), [*NAMES, *REFUSED])
    with dry_run(workspace, 1000) as look:
        paths = read_stored(look.workspace, "score_manifest").collect()["path"].to_list()
    assert sorted(paths) == sorted(set(NAMES) - HIDDEN)


def test_names_that_are_no_text_are_refused_by_name(tmp_path: Path, tiny_model: Path) -> None:
    workspace = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(3)})
    (landed(workspace) / os.fsdecode(b"\xff\xfe.jsonl")).write_bytes(b"{}")
    run(workspace)
    assert workspace.landing.ignored() == ["\\udcff\\udcfe.jsonl (its name is not UTF-8)"]
    assert read_stored(workspace, "score_manifest").collect()["path"].to_list() == ["a.jsonl"]


def test_benchmarks_are_found_wherever_the_configuration_lies(tmp_path: Path, tiny_model: Path) -> None:
    folder = tmp_path / "[we]ird *?"
    corpus = 'filters: {contamination: ["./bench[m]arks/*.jsonl"]}'
    write_shard(folder / "benchmarks" / "test's #1.jsonl", [{"question": "Count on from 1. " + "and so on " * 10}])
    workspace = make_workspace(folder, tiny_model, {"a.jsonl": rows(3)}, corpus=corpus)
    run(workspace)
    assert len(read_stored(workspace, "sample_quality").collect()) == 3


# Names of the configuration


WRONG = [
    "x'; drop table y; --",
    'x"y',
    "x y",
    "X",
    "1x",
    "_x",
    "x-y",
    "x.y",
    "x/../y",
    "<b>",
    "x\n",
    "x\u0301",
    "ｘ",
    "",
]
SOUND = """\
corpus: {{landing: ./l}}
targets: [{{name: {target}, model: ./m, warmup: none, signals: [step_gradients, embeddings_position_weighted]}}]
validation: [{{name: {validation}, path: v.jsonl}}]
scores:
  - {{name: {score}, target: {target}, method: grace}}
  - {{name: near, target: {target}, method: rds_plus, validation: {validation}}}
subsets: [{{name: {subset}, score: {score}, budget: {{samples: 1}}}}]
"""


@pytest.mark.parametrize("what", ["target", "validation", "score", "subset"])
def test_names_of_the_configuration_are_words(what: str) -> None:
    """They become names of folders, assets, columns, views and headings."""
    sound = {"target": "t", "validation": "v", "score": "s", "subset": "u"}
    parse_settings(SOUND.format(**sound).encode(), Path("curation.yaml"))
    for name in WRONG:
        with pytest.raises(ConfigError, match=r"curation\.yaml:\d"):
            parse_settings(SOUND.format(**sound | {what: json.dumps(name)}).encode(), Path("curation.yaml"))


# SQL


INJECTION = "'; drop table raw_corpus; copy (select 1) to 'ran'; --"


@pytest.fixture
def asked(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace with an injection as everything that a row can name."""
    made = {"source": INJECTION, "generator": INJECTION, "domain": INJECTION, INJECTION: INJECTION}
    shards = {f"{INJECTION}.jsonl": [row | made for row in rows(3)], 'a".jsonl': rows(2, start=20)}
    workspace = make_workspace(tmp_path / INJECTION / "w", tiny_model, shards, corpus="")
    run(workspace)
    monkeypatch.chdir(tmp_path)
    return workspace


def test_names_and_values_are_not_taken_for_sql(asked: Workspace, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    found = run_sql(asked, "select source, shard, extra from raw_corpus where source is not null order by row")
    mine = found.filter(pl.col("source") == INJECTION)
    assert len(mine) == 3
    assert set(map(file_name, mine["shard"])) == {f"{INJECTION}.jsonl"}
    assert INJECTION in mine["extra"][0]
    quoted = INJECTION.replace("'", "''")
    assert len(run_sql(asked, f"select * from sample_scores where source = '{quoted}'")) == 3
    assert run_sql(asked, f'select source as "{INJECTION}" from sample_scores').columns == [INJECTION]
    duckdb = DuckDBTables(asked)
    for query in (f"select * from raw_corpus where source = '{INJECTION}'", "select 1; drop view raw_corpus"):
        with pytest.raises(SqlError):
            duckdb.query(query)
    # DuckDB runs a text as a query where it is told to; it is one that reads, and reads no more than any other.
    with pytest.raises(SqlError):
        duckdb.query("select * from query('copy (select 1) to ''ran''')")
    with pytest.raises(SqlError, match="does not exist"):
        duckdb.query("select * from frame")
    assert len(duckdb.query("select * from raw_corpus")) == 5
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


@settings(deadline=None, max_examples=100)
@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20) | st.just(INJECTION))
def test_a_quoted_name_is_a_name(name: str) -> None:
    import duckdb

    with duckdb.connect(":memory:") as connection:
        connection.execute(f"create view {_quoted(name)} as select 1 as {_quoted(name)}")
        assert connection.execute(f"select * from {_quoted(name)}").description[0][0] == name
        assert connection.execute("select view_name from duckdb_views() where not internal").fetchall() == [(name,)]
