"""What the benchmarks share: models of a given shape, encoded samples, alternating timing, kept results."""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from curation_resources.scoring.head import Head
from curation_resources.scoring.loading import Checkpoint
from curation_resources.scoring.samples import ANSWER, Encoded, Sample

RESULTS = Path(__file__).parent / "results"
DATA = Path(os.environ.get("CURATION_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))


def parser(description: str | None) -> argparse.ArgumentParser:
    """A command line with the options that every benchmark has."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rounds", type=int, default=5, help="alternating rounds; the median ratio counts")
    made.add_argument("--small", action="store_true", help="a tiny model and few samples: to see that it runs")
    made.add_argument("--keep", action="store_true", help="write the result to tests/benchmarks/results")
    made.add_argument("--threads", type=int, default=None, help="threads of torch; default: its own choice")
    return made


def qwen2(
    vocabulary: int = 32_000,
    hidden: int = 512,
    layers: int = 8,
    intermediate: int = 1408,
    context: int = 32_768,
    key_value_heads: int | None = None,
) -> tuple[Any, Checkpoint]:
    """A Qwen2 of random weights, whole and taken apart; its tokenizer is not needed."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden // 64),
        num_key_value_heads=key_value_heads or max(1, hidden // 256),
        max_position_embeddings=context,
        tie_word_embeddings=True,
    )
    model = Qwen2ForCausalLM(config).eval()
    model.requires_grad_(False)
    checkpoint = Checkpoint(
        decoder=model.model,
        head=Head(model.lm_head.weight.detach()),
        tokenizer=None,
        device=torch.device("cpu"),
        max_length=context,
        vocabulary=vocabulary,
        model=model,
    )
    return model, checkpoint


def encoded(name: str, prompt: int, segments: Sequence[tuple[int, int]], vocabulary: int, seed: int = 0) -> Encoded:
    """Random tokens: so many of a prompt, then (segment index, tokens) one after another; no EOS."""
    generator = torch.Generator().manual_seed(seed)
    owners = [-1] * prompt + [index for index, tokens in segments for _ in range(tokens)]
    ids = torch.randint(0, vocabulary, (len(owners),), generator=generator).tolist()
    return Encoded(Sample(name, [], ""), ids, prompt, len(owners) - prompt, owners)


def even_samples(count: int, tokens: int, steps: int, vocabulary: int) -> list[Encoded]:
    """Samples of equal length: one token of prompt, so that every token but the first is a label."""
    share = (tokens - 1) // (steps + 1)
    segments = [(index, share) for index in range(1, steps + 1)] + [(ANSWER, tokens - 1 - steps * share)]
    return [encoded(f"s{number}", 1, segments, vocabulary, number) for number in range(count)]


def gsm8k_samples(count: int, vocabulary: int, skip: int = 0) -> list[Encoded]:
    """GSM8K training rows in arrival order, a word or sign a token: real lengths, prompts and steps.

    Raises:
        SystemExit: the data is not there; the message says how to name it.
    """
    pieces = re.compile(r"\w+|[^\w\s]")
    samples = []
    path = DATA / "gsm8k" / "train.jsonl"
    if not path.is_file():
        raise SystemExit(f"no GSM8K in {path}: set CURATION_TEST_DATA to a folder that holds gsm8k/train.jsonl")
    lines = path.read_text().splitlines()[skip : skip + count]
    for number, row in enumerate(map(json.loads, lines)):
        steps, _, answer = row["answer"].partition("####")
        counts = [len(pieces.findall(line)) for line in steps.strip().splitlines()]
        segments = [(index, tokens) for index, tokens in enumerate(filter(None, counts), 1)]
        segments.append((ANSWER, max(1, len(pieces.findall(answer)))))
        prompt = len(pieces.findall(row["question"]))
        samples.append(encoded(f"g{number}", prompt, segments, vocabulary, number))
    return samples


@dataclass(frozen=True)
class Clocks:
    """Seconds of one side, by round: of the wall clock, and of this process' CPU."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def alternate_clocks(sides: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Clocks]:
    """Seconds of every side in every round; one round of warming up is not counted.

    The order turns from round to round, so that no side always runs first.
    """
    names = list(sides)
    clocks = {name: Clocks() for name in names}
    for number in range(rounds + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            gc.collect()
            started, cpu = time.perf_counter(), time.process_time()
            sides[name]()
            if number:
                clocks[name].wall.append(time.perf_counter() - started)
                clocks[name].cpu.append(time.process_time() - cpu)
    return clocks


def alternate(sides: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of the wall clock; see `alternate_clocks`."""
    return {name: clocks.wall for name, clocks in alternate_clocks(sides, rounds).items()}


def padding_fraction(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> float:
    """Share of the tokens run that are padding."""
    run = sum(max(lengths[i] for i in batch) * len(batch) for batch in batches)
    return 1.0 - sum(lengths) / run if run else 0.0


def median_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """Median over rounds of the ratio within a round."""
    return round(statistics.median(a / b for a, b in zip(numerator, denominator, strict=True)), 3)


def ratios(name: str, numerator: Clocks, denominator: Clocks) -> dict[str, object]:
    """Median ratios of both clocks, and the lowest and highest ratio of CPU times."""
    cpu = [a / b for a, b in zip(numerator.cpu, denominator.cpu, strict=True)]
    return {
        name: median_ratio(numerator.wall, denominator.wall),
        f"{name}_cpu": median_ratio(numerator.cpu, denominator.cpu),
        f"{name}_cpu_range": [round(min(cpu), 2), round(max(cpu), 2)],
    }


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns of text, aligned."""
    cells = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)


def hardware() -> str:
    """What this runs on, fit for a file's name."""
    if torch.cuda.is_available():
        return re.sub(r"\W+", "-", torch.cuda.get_device_name()).lower()
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    name = re.sub(r"\W+", "-", re.sub(r"\(.*?\)", "", found[1] if found else platform.machine())).strip("-").lower()
    return f"{name}-{os.cpu_count()}-cpus"


def finish(name: str, result: Mapping[str, object], options: argparse.Namespace, part: str | None = None) -> None:
    """Print the result as the last line, and keep it if asked to; `part`: what `--only` named."""
    line = json.dumps(result)
    if options.keep:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{datetime.now(UTC):%Y-%m-%d}-{name}{f'-{part}' if part else ''}-{hardware()}.json"
        kept = {
            "command": f"python -m tests.benchmarks.{name}" + (f" --only {part}" if part else ""),
            "hardware": hardware(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "result": dict(result),
        }
        path.write_text(json.dumps(kept, indent=2) + "\n")
    print(line)
