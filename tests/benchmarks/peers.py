"""Our passes against gradient-based peers: the same model, the same tokens, one thread each, in turn.

    python -m tests.benchmarks.peers

The peers are no dependency of ours: each gets a virtual environment in a cache folder, made once with pip from
`peer_workers/*.txt` (4 GB for all; what pip finds as torch is used, so point pip at CPU builds if you have
the choice). Every side is a process that stays; rounds run each of them once. A side is given its best: it tries
batch sizes when it starts and keeps the fastest, no side reads files or turns text into tokens while the clock
runs, and none forms a key-value cache. Sides:
  grace                        ours, eight steps a sequence
  forward                      model(ids) and cross-entropy in inference mode: the unit
  features                     ours: gradient features, 16 x 16 of every linear layer
  features 8192                the same, 64 x 64 of every linear layer, added into 8,192 numbers
  less loop                    gradients of one sequence at a time by all linear weights, no projection
  bergson                      gradients in memory, 16 x 16 a layer, the model prepared as its `build` prepares it
  bergson, trimmed             the same numbers, the model prepared so that autograd does the least for them
  kronfluence                  squared norms, unprojected: self-influence with the identity for a curvature
  traker 512                   TRAKer.featurize, dense projection to 512, drawn anew for every batch: its default
  traker 512, batches of 8     the same at a fixed batch size; run on 16 sequences and scaled to all
  traker 512, stored           the projection matrix drawn once and kept: 2 KiB a weight

Before the result counts it is checked that every side's numbers are finite, non-zero and differ between sequences,
and that the unprojected gradients of all peers have the same norms.

The last line is one JSON object; ratios are medians over rounds. `speedup_over_X` is the time of X over that of
grace, `X_over_forward` over that of the bare forward pass; `features_speedup_over_bergson` is the time of bergson over
that of our features of the same projection, `features_speedup_over_bergson_trimmed` likewise.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.benchmarks.common import even_samples, finish, median_ratio, parser, qwen2, table

ROOT = Path(__file__).parents[2]
WORKERS = Path(__file__).parent / "peer_workers"
CACHE = Path.home() / ".cache" / "curation-benchmarks"
NORM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Peer:
    """A package that is measured in an environment of its own.

    Attributes:
        name: of its worker and its list of requirements.
        package: what to install; without its requirements, which the list names.
        sides: what its worker runs.
    """

    name: str
    package: str
    sides: tuple[str, ...]


PEERS = {
    "bergson": Peer("bergson", "bergson==2.5.1", ("bergson", "bergson, trimmed")),
    "kronfluence": Peer("kronfluence", "kronfluence==1.0.1", ("kronfluence",)),
    "traker": Peer("traker", "traker==0.3.2", ("traker 512", "traker 512, batches of 8", "traker 512, stored")),
}
OURS = ("grace", "features", "features 8192", "forward", "less loop")
REPRESENTATIVES = ("grace", *(peer.sides[0] for peer in PEERS.values()))
"""One side of every environment; the versions are the same on all of them."""


def wanted(peer: Peer) -> str:
    """What an environment must have been made from to be used."""
    return f"{peer.package}\n{(WORKERS / f'{peer.name}.txt').read_text()}"


def python_of(peer: Peer, cache: Path) -> Path | None:
    """The interpreter of a peer's environment, or None if it was not made or was made from something else."""
    mark = cache / peer.name / "made-from.txt"
    if not mark.exists() or mark.read_text() != wanted(peer):
        return None
    return cache / peer.name / "bin" / "python"


def make_environment(peer: Peer, cache: Path) -> Path:
    """The interpreter of a peer's environment; makes the environment if need be.

    Raises:
        SystemExit: pip cannot install the peer; the message holds its last words.
    """
    found = python_of(peer, cache)
    if found is not None:
        return found
    folder = cache / peer.name
    print(f"making an environment for {peer.package} in {folder}: some minutes, up to 2 GB", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    python = folder / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for command in (
        [sys.executable, "-m", "venv", str(folder)],
        [*pip, "-r", str(WORKERS / f"{peer.name}.txt")],
        [*pip, "--no-deps", peer.package],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            words = "\n".join((done.stderr or done.stdout).strip().splitlines()[-8:])
            raise SystemExit(
                f"{peer.package} cannot be installed; {' '.join(command)} says:\n{words}\n"
                f"Check that pip reaches a package index, or leave the peer out with --peers."
            )
    (folder / "made-from.txt").write_text(wanted(peer))
    return python


class Worker:
    """A side's process, which answers a line of JSON for every line it reads.

    Attributes:
        side: what it runs.
        about: what it said when it was ready: batch size, sequences, setting and versions.
    """

    def __init__(self, side: str, process: subprocess.Popen[str], log: Path) -> None:
        self.side, self.process, self.log = side, process, log
        self.about = self._answer()

    def ask(self, line: str) -> dict[str, Any]:
        """The answer to a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            words = "\n".join(self.log.read_text().strip().splitlines()[-15:])
            raise SystemExit(f"the worker of {self.side!r} ended with {self.process.wait()}; its last words:\n{words}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def worker(side: str, module: str, python: Path, folder: Path) -> Iterator[Worker]:
    """A side's process, with one thread; it ends with the block."""
    log = folder / f"{side.replace(' ', '-')}.log"
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    command = [str(python), "-m", f"tests.benchmarks.peer_workers.{module}_worker", side]
    with log.open("w") as words:
        process = subprocess.Popen(
            [*command, str(folder / "model"), str(folder / "tokens.npy")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=words,
            text=True,
            cwd=ROOT,
            env={**inherited, **threads, **offline},
        )
    with process:  # which closes stdin, and so ends the worker
        try:
            yield Worker(side, process, log)
        except BaseException:
            process.kill()
            raise


def alternate(workers: Sequence[Worker], rounds: int, sequences: int) -> dict[str, list[dict[str, float]]]:
    """Wall and process seconds of every side in every round, for all sequences; a first round is not counted.

    The order turns from round to round. A side that runs fewer sequences is scaled to all.
    """
    seconds: dict[str, list[dict[str, float]]] = {one.side: [] for one in workers}
    for number in range(rounds + 1):
        turn = number % len(workers)
        for one in [*workers[turn:], *workers[:turn]]:
            answer = one.ask("run")
            if number:
                scale = sequences / one.about["sequences"]
                seconds[one.side].append({clock: value * scale for clock, value in answer.items()})
    return seconds


def check(workers: Sequence[Worker]) -> None:
    """Ask every side for what shows that it did its work.

    Raises:
        SystemExit: a side's numbers are not finite, are zero or the same for all sequences, or the norms of
            unprojected gradients differ between peers.
    """
    norms: dict[str, list[float]] = {}
    for one in workers:
        answer = one.ask("check")
        if one.side != "forward" and not (
            answer["finite"] and answer["nonzero"] and answer["distinct"] and answer["rows"] == one.about["sequences"]
        ):
            raise SystemExit(f"{one.side!r} did not do its work: {answer}")
        if answer["norms"]:
            norms[one.side] = answer["norms"]
    expected = norms["less loop"]
    for side, found in norms.items():
        if not all(math.isclose(a, b, rel_tol=NORM_TOLERANCE) for a, b in zip(found, expected, strict=True)):
            raise SystemExit(f"{side!r} has gradients of norms {found}, the loop has {expected}")
    print(f"norms of two sequences' gradients, the same on {', '.join(norms)}: {[round(norm, 4) for norm in expected]}")


def report(workers: Sequence[Worker], seconds: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, object]:
    """Print the table; returns the result."""
    wall = {side: [one["wall"] for one in rounds] for side, rounds in seconds.items()}
    rows = []
    for one in workers:
        side, setting = one.side, f"{one.about['setting']}; batches of {one.about['batch']}"
        cpu = statistics.median(each["cpu"] for each in seconds[side])
        ratios = (median_ratio(wall[side], wall["forward"]), median_ratio(wall[side], wall["grace"]))
        rows.append((side, f"{statistics.median(wall[side]):.2f}", f"{cpu:.2f}", *ratios, setting))
    print(table(("side", "seconds", "process seconds", "over forward", "over ours", "setting"), rows))
    result: dict[str, object] = {"grace_over_forward": median_ratio(wall["grace"], wall["forward"])}
    for side, times in wall.items():
        if side in ("grace", "forward"):
            continue
        key = side.replace(",", "").replace(" ", "_")
        if not side.startswith("features"):
            result[f"speedup_over_{key}"] = median_ratio(times, wall["grace"])
        result[f"{key.replace('_512', '')}_over_forward"] = median_ratio(times, wall["forward"])
    for side in PEERS["bergson"].sides:
        if side in wall:
            result[f"features_speedup_over_{side.replace(', ', '_')}"] = median_ratio(wall[side], wall["features"])
    result["batches"] = {one.side: one.about["batch"] for one in workers}
    result["versions"] = {one.side: one.about["versions"] for one in workers if one.side in REPRESENTATIVES}
    return result


def arguments() -> argparse.Namespace:
    """The command line."""
    made = parser(__doc__)
    made.add_argument("--cache", type=Path, default=CACHE, help="folder of the peers' environments")
    made.add_argument("--peers", nargs="*", choices=sorted(PEERS), default=sorted(PEERS), help="which to measure")
    made.add_argument("--sequences", type=int, default=64)
    made.add_argument("--tokens", type=int, default=256, help="of a sequence")
    made.add_argument(
        "--shape",
        type=int,
        nargs=4,
        default=(1000, 128, 4, 512),
        metavar=("VOCABULARY", "HIDDEN", "LAYERS", "INTERMEDIATE"),
    )
    options = made.parse_args()
    if options.threads not in (None, 1):
        made.error("every side runs with one thread")
    options.threads = 1
    if options.small:
        options.sequences, options.tokens, options.shape = 16, 64, (200, 64, 2, 128)
    return options


def main() -> None:
    """Make what is missing, run all sides in turn, print and keep the result."""
    options = arguments()
    torch.set_num_threads(1)
    modules = {side: ("ours", Path(sys.executable)) for side in OURS}
    for name in options.peers:
        peer = PEERS[name]
        python = make_environment(peer, options.cache)
        modules |= dict.fromkeys(peer.sides, (peer.name, python))
    vocabulary, hidden, layers, intermediate = options.shape
    with tempfile.TemporaryDirectory() as kept, ExitStack() as open_workers:
        folder = Path(kept)
        model, _ = qwen2(vocabulary, hidden, layers, intermediate, context=max(1024, options.tokens))
        model.save_pretrained(folder / "model")
        samples = even_samples(options.sequences, options.tokens, 8, vocabulary)
        np.save(folder / "tokens.npy", np.array([sample.input_ids for sample in samples]))
        workers = []
        for side, (module, python) in modules.items():  # one after another: each times batch sizes when it starts
            print(f"starting {side}", flush=True)
            workers.append(open_workers.enter_context(worker(side, module, python, folder)))
        seconds = alternate(workers, options.rounds, options.sequences)
        check(workers)
        print(
            f"\n{options.sequences} sequences of {options.tokens} tokens, one thread a side, "
            f"Qwen2 of vocabulary, hidden size, layers, intermediate size {tuple(options.shape)}"
        )
        result = report(workers, seconds)
    finish("peers", result, options)


if __name__ == "__main__":
    main()
