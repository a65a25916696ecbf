"""Runs of the real pipeline on the demo corpus that meet faults, and whether anything is lost or doubled.

    python -m tests.faults --rounds 100

Each round takes the next kind of fault at a point drawn from the seed, then lets one more run finish, and holds the
final tables against those of an undisturbed run: ids, texts, segments and rejected rows to the bit, signals
and what is arithmetic over them to a relative 1e-5. Rounds on a folder begin with an empty warehouse or with a
finished one whose landing area has grown. S3 is moto's server behind a proxy that fails on purpose.

The last line is one JSON object: `rounds`, `faults_survived`, `rows_lost`, `rows_doubled`, `kinds` (rounds of each),
`left_out` (kinds that this machine does not allow, and why).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from moto.server import ThreadedMotoServer

from tests.faults import rounds
from tests.faults.compare import Difference
from tests.faults.proxy import FailingS3
from tests.faults.rounds import FROM_SCRATCH, ON_A_FOLDER, ON_S3, NotStruckError, Round, Undisturbed

TRIES = 5
"""A fault whose moment came too late is tried again."""


class Harness:
    """Runs rounds in a folder of its own.

    Args:
        folder: where everything lies.
        seed: what all random numbers come from.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self._draw = random.Random(f"faults {seed}")
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        # A line for every request would hide what happens.
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        host, port = self._server.get_host_and_port()
        self.proxy = FailingS3(f"http://{host}:{port}", seed)
        self._known: dict[str, Undisturbed] = {}

    def close(self) -> None:
        """Stop the servers."""
        self.proxy.close()
        self._server.stop()

    def undisturbed(self, state: str) -> Undisturbed:
        """What nothing happened to: `empty` warehouse, or `grown` landing area; on a folder."""
        if state not in self._known:
            folder = self.folder / f"undisturbed-{state}"
            if state == "empty":
                rounds.make(folder)
            else:
                rounds.copied(self.undisturbed("empty"), folder)
            rounds.land(folder / "landing", grown=state == "grown")
            self._known[state] = rounds.undisturbed(folder, {})
        return self._known[state]

    def once(self, kind: str, number: int) -> Difference:
        """One round of a kind, at the first moment that strikes."""
        for attempt in range(TRIES):
            folder = self.folder / f"round-{number}-{attempt}"
            try:
                difference = self._on_s3(kind, folder) if kind in ON_S3 else self._on_folder(kind, folder)
            except NotStruckError:
                _clear(folder)
                continue
            if difference.none:
                _clear(folder)
            return difference
        return Difference(others=[f"in {TRIES} tries the fault never took place"])

    def _on_folder(self, kind: str, folder: Path) -> Difference:
        state = "empty" if kind in FROM_SCRATCH else self._draw.choice(["empty", "grown"])
        wanted = self.undisturbed(state)
        if state == "empty":
            rounds.make(folder)
        else:
            rounds.copied(self.undisturbed("empty"), folder)
        rounds.land(folder / "landing", grown=state == "grown")
        draw = random.Random(self._draw.random())
        at = Round(folder, draw, wanted.seconds, wanted.files, wanted.size)
        ON_A_FOLDER[kind](at)
        return rounds.settle(at, wanted)

    def _on_s3(self, kind: str, folder: Path) -> Difference:
        wanted = self.undisturbed("empty")
        with rounds.bucket(self.proxy.address) as (name, environment):
            rounds.make(folder, f"s3://{name}/here")
            # The files stay on disk: an object's version is another one than a file's, and the tables tell of it.
            config = folder / "curation.yaml"
            config.write_text(config.read_text().replace(f"s3://{name}/here/landing", "./landing"))
            rounds.land(folder / "landing")
            os.environ.update(environment)
            draw = random.Random(self._draw.random())
            at = Round(folder, draw, wanted.seconds * 1.5, wanted.files, wanted.size, environment, self.proxy)
            ON_S3[kind](at)
            return rounds.settle(at, wanted)


def _clear(folder: Path) -> None:
    warehouse = folder / "warehouse"
    if warehouse.is_mount():
        subprocess.run(["umount", str(warehouse)], check=True)
    shutil.rmtree(folder, ignore_errors=True)


def refused_kinds(folder: Path) -> dict[str, str]:
    """Kinds that cannot be made on this machine, and why."""
    trial = folder / "trial"
    trial.mkdir(parents=True)
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(trial)], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return {"disk_full": "there is no mount command"}
    if done.returncode:
        return {"disk_full": f"a small disk cannot be made: {done.stderr.strip()}"}
    subprocess.run(["umount", str(trial)], check=True)
    return {}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the harness; 1 if a fault was not survived."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100, help="faults in all, the kinds in turn")
    parser.add_argument("--seed", type=int, default=0, help="what moments and places are drawn from")
    parser.add_argument("--only", nargs="*", choices=[*ON_A_FOLDER, *ON_S3], help="these kinds only")
    parser.add_argument("--keep", type=Path, help="a folder for what failed rounds left; default: it goes")
    given = parser.parse_args(arguments)
    folder = given.keep or Path(tempfile.mkdtemp(prefix="curation-faults-"))
    folder.mkdir(parents=True, exist_ok=True)
    left_out = refused_kinds(folder)
    kinds = [kind for kind in given.only or [*ON_A_FOLDER, *ON_S3] if kind not in left_out]
    counts: Counter[str] = Counter()
    survived = lost = doubled = 0
    harness = Harness(folder, given.seed)
    try:
        for number in range(given.rounds):
            kind = kinds[number % len(kinds)]
            begin = time.monotonic()
            difference = harness.once(kind, number)
            counts[kind] += 1
            survived += difference.none
            lost += difference.lost
            doubled += difference.doubled
            verdict = "survived" if difference.none else "; ".join(difference.others)
            print(f"{number + 1}/{given.rounds} {kind}: {verdict} ({time.monotonic() - begin:.0f} s)", flush=True)
    finally:
        harness.close()
        if given.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    print(
        json.dumps(
            {
                "rounds": given.rounds,
                "faults_survived": survived,
                "rows_lost": lost,
                "rows_doubled": doubled,
                "kinds": dict(sorted(counts.items())),
                "left_out": left_out,
            }
        )
    )
    return 0 if survived == given.rounds else 1


if __name__ == "__main__":
    sys.exit(main())
