"""One round: a workspace in its own place, a run that meets a fault, one more run, and what the tables say then."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

import boto3  # type: ignore[import-untyped]
import polars as pl

from curation_assets.demo.corpus import write_corpus
from curation_assets.demo.tour import MODEL
from curation_resources.errors import UserError
from tests.faults.compare import Difference, compare, final_tables
from tests.faults.proxy import FailingS3, Trouble
from tests.faults.worker import finish, start

PROMPTS = 40
CONFIG = """\
corpus: {{landing: {place}/landing}}
warehouse: {place}/warehouse
targets:
  - name: tiny
    model: {model}
    signals: [step_gradients, likelihoods]
    warmup: {{fraction: 0.1, min_pool: 40}}
scores:
  - {{name: grace, target: tiny, method: grace, alpha: 0.7}}
subsets:
  - {{name: best, score: grace, budget: {{fraction: 0.5}}}}
engine: {{device: cpu, part_seconds: 0.1, batch_tokens: 2048}}
releases: {{policy: manual}}
"""
QUIET = {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "2"}
BAD_ROWS = '{"prompt": "p"}\nnot json\n{"prompt": "p", "response": "  "}\n'


class NotStruckError(Exception):
    """The fault did not take place: the run was over before, or met none of it."""


@dataclass
class Round:
    """Where a round takes place, and what it draws its numbers from.

    Attributes:
        folder: its own folder.
        draw: its random numbers.
        seconds: what the undisturbed run took.
        files: files that the undisturbed run put in place.
        size: bytes of its warehouse.
        environment: variables of its runs.
        proxy: what stands before S3; None in rounds on a folder.
    """

    folder: Path
    draw: random.Random
    seconds: float
    files: int
    size: int
    environment: dict[str, str] = field(default_factory=dict)
    proxy: FailingS3 | None = None

    @property
    def config(self) -> Path:
        """Its curation.yaml."""
        return self.folder / "curation.yaml"

    @property
    def log(self) -> Path:
        """What its runs said."""
        return self.folder / "log.txt"

    def start(self, kill_at_commit: int = 0) -> BaseProcess:
        """Begin a run."""
        return start(self.config, self.log, QUIET | self.environment, kill_at_commit)

    def run(self) -> int:
        """A run to its end; its exit code."""
        return finish(self.start())


def land(folder: Path, grown: bool = False) -> None:
    """The demo corpus, small, with some rows that cannot be used; `grown`: one file changed, and one more."""
    write_corpus(folder, n_prompts=PROMPTS)
    (folder / "bad.jsonl").write_text(BAD_ROWS)
    if grown:
        lines = (folder / "part-0.jsonl").read_text().splitlines(keepends=True)
        (folder / "part-0.jsonl").write_text("".join(lines[3:]) + BAD_ROWS)
        write_corpus(folder / "new", seed=1, n_prompts=10)
    for path in folder.rglob("*"):
        # Long settled: no run waits to see whether they are still being written.
        os.utime(path, (time.time() - 3600,) * 2)


def make(folder: Path, place: str = ".") -> None:
    """A workspace's files; `place` is where its landing area and warehouse lie."""
    folder.mkdir(parents=True)
    (folder / "curation.yaml").write_text(CONFIG.format(place=place, model=MODEL))


def kill(at: Round) -> None:
    """kill -9 at some moment."""
    _stop(at, signal.SIGKILL)


def interrupt(at: Round) -> None:
    """Ctrl-C at some moment."""
    _stop(at, signal.SIGINT)


def _stop(at: Round, how: signal.Signals) -> None:
    process = at.start()
    process.join(at.draw.uniform(0.02, 0.9) * at.seconds)
    if not process.is_alive() or process.pid is None:
        raise NotStruckError
    os.kill(process.pid, how)
    if finish(process) == 0:
        raise NotStruckError


def kill_at_commit(at: Round) -> None:
    """kill -9 after a file is written, before it has its name."""
    if finish(at.start(at.draw.randint(1, at.files))) == 0:
        raise NotStruckError


def kill_twice(at: Round) -> None:
    """kill -9, and once more when it goes on."""
    kill(at)
    kill(at)


def two_runs(at: Round) -> None:
    """Two runs that begin together, or nearly."""
    first = at.start()
    time.sleep(at.draw.choice([0.0, 0.0, at.draw.uniform(0, at.seconds / 2)]))
    second = at.start()
    finish(first)
    finish(second)


def fill_the_disk(at: Round) -> None:
    """The warehouse lies on a disk that is too small."""
    room = int(at.draw.uniform(0.1, 0.9) * at.size) + 64 * 1024
    warehouse = at.folder / "warehouse"
    warehouse.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", str(warehouse)], check=True)
    if at.run() == 0:
        raise NotStruckError
    subprocess.run(["mount", "-o", "remount,size=1g", str(warehouse)], check=True)


def corrupt_part(at: Round) -> None:
    """A measured part is changed behind the pipeline's back: a bit, its end, or all of it."""
    at.run()
    parts = sorted((at.folder / "warehouse" / "signals").rglob("part-*.parquet"))
    _damage(at.draw.choice(parts), at.draw)


def damage_table(at: Round) -> None:
    """Another table is cut off."""
    at.run()
    folders = ("corpus", "steps", "scores", "subsets")
    found = sorted(path for name in folders for path in (at.folder / "warehouse" / name).rglob("*.parquet"))
    path = at.draw.choice(found)
    path.write_bytes(path.read_bytes()[: -at.draw.randint(1, 400)])


def lose_files(at: Round) -> None:
    """Some tables are deleted."""
    at.run()
    found = sorted((at.folder / "warehouse").rglob("*.parquet"))
    for path in at.draw.sample(found, 3):
        path.unlink()


def _damage(path: Path, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    how = draw.choice(["bit", "end", "zeros"])
    if how == "bit":
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif how == "end":
        del data[draw.randrange(len(data)) :]
    else:
        data[:] = bytes(len(data))
    path.write_bytes(bytes(data))


def half_copied(at: Round) -> None:
    """A file is replaced by a longer one while the run goes on, and put back as it was."""
    path = at.folder / "landing" / "part-1.jsonl"
    whole, look = path.read_bytes(), path.stat()
    path.write_bytes(whole[: len(whole) // 2])
    os.utime(path, ns=(look.st_atime_ns, look.st_mtime_ns))
    process = at.start()
    time.sleep(at.draw.uniform(0.1, 0.7) * at.seconds)
    path.write_bytes(whole)
    finish(process)


def failing_s3(kind: str) -> Callable[[Round], None]:
    """S3 that meets some requests with trouble, or from some request on all of them."""

    def strike(at: Round) -> None:
        assert at.proxy is not None
        outage = kind != "slow" and at.draw.random() < 0.3
        at.proxy.seen = at.proxy.failed = 0
        begin = at.draw.randint(5, 300) if outage else 0
        at.proxy.trouble = Trouble(kind, 1.0 if outage else at.draw.uniform(0.02, 0.15), begin)
        try:
            at.run()
        finally:
            at.proxy.trouble = Trouble()
        if not at.proxy.failed:
            raise NotStruckError

    return strike


ON_A_FOLDER: dict[str, Callable[[Round], None]] = {
    "killed": kill,
    "killed_at_commit": kill_at_commit,
    "killed_twice": kill_twice,
    "interrupted": interrupt,
    "two_runs": two_runs,
    "disk_full": fill_the_disk,
    "corrupted_part": corrupt_part,
    "damaged_table": damage_table,
    "lost_files": lose_files,
    "half_copied_file": half_copied,
}
ON_S3: dict[str, Callable[[Round], None]] = {
    "s3_killed": kill,
    "s3_two_runs": two_runs,
    "s3_errors": failing_s3("errors"),
    "s3_throttling": failing_s3("throttling"),
    "s3_slow": failing_s3("slow"),
    "s3_reset": failing_s3("reset"),
    "s3_partial": failing_s3("partial"),
}
FROM_SCRATCH = frozenset({"disk_full"})
"""Kinds that need an empty warehouse."""


@contextmanager
def bucket(server: str) -> Iterator[tuple[str, dict[str, str]]]:
    """A fresh bucket, and the variables that say how to reach it."""
    environment = {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    client = boto3.client(
        "s3", endpoint_url=server, aws_access_key_id="test", aws_secret_access_key="secret", region_name="us-east-1"
    )
    name = f"faults-{uuid.uuid4().hex}"
    client.create_bucket(Bucket=name)
    yield name, environment
    found = boto3.resource(
        "s3", endpoint_url=server, aws_access_key_id="test", aws_secret_access_key="secret", region_name="us-east-1"
    ).Bucket(name)
    found.objects.all().delete()
    found.delete()


@dataclass(frozen=True)
class Undisturbed:
    """What a run left that nothing happened to, how long it took, and its folder."""

    tables: dict[str, pl.DataFrame]
    seconds: float
    files: int
    size: int
    folder: Path


def undisturbed(folder: Path, environment: dict[str, str]) -> Undisturbed:
    """Run a workspace to its end."""
    at = Round(folder, random.Random(), 0.0, 0, 0, environment)
    begin = time.monotonic()
    if at.run() != 0:
        raise SystemExit(f"the undisturbed run failed:\n{at.log.read_text()[-4000:]}")
    seconds = time.monotonic() - begin
    stored = [path for path in (folder / "warehouse").rglob("*") if path.is_file()]
    return Undisturbed(
        final_tables(at.config), seconds, len(stored), sum(path.stat().st_size for path in stored), folder
    )


def settle(at: Round, wanted: Undisturbed) -> Difference:
    """One more run, which nothing happens to, and what its tables say."""
    if at.run() != 0:
        return Difference(others=["the run after the fault failed: " + at.log.read_text().strip().splitlines()[-1]])
    try:
        found = final_tables(at.config)
    except UserError as error:
        return Difference(others=[f"a table cannot be read after the last run: {error}"])
    return compare(found, wanted.tables)


def copied(of: Undisturbed, folder: Path) -> None:
    """A workspace that is finished, to go on with."""
    shutil.copytree(of.folder, folder, symlinks=True)
