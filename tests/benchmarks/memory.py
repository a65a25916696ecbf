"""Peak memory of the pass against vocabulary and length: the [T, V] logits never exist.

    python -m tests.benchmarks.memory

Every figure is taken in a process of its own. `extra` is the peak above that of the same model giving only
its final hidden states, for all signals of one sequence; `whole logits` is the same for model(ids) and a loss,
where the machine has room for it.

There are no rounds: memory does not vary as time does. The last line is one JSON object;
`extra_gib_v152k_t4096` is ours at V = 152,000 and T = 4,096.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import torch

from tests.benchmarks.common import even_samples, finish, parser, qwen2, table
from tests.benchmarks.forward import ALL, bare, ours

GIB = 2**30
CASES = [(32_000, 512), (32_000, 4096), (152_000, 512), (152_000, 4096), (152_000, 16_384)]
WHOLE_LOGITS_LIMIT = 8 * GIB


def peak_bytes() -> int:
    """Peak resident memory of this process since `reset_peak`."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def reset_peak() -> None:
    """Forget the peak so far (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def measure(side: str, vocabulary: int, tokens: int) -> int:
    """Peak bytes above the memory before, in this process."""
    model, checkpoint = qwen2(vocabulary, hidden=256, layers=2, intermediate=512)
    samples = even_samples(1, tokens, 8, vocabulary)
    ids = torch.tensor([samples[0].input_ids])
    with torch.inference_mode():
        checkpoint.decoder(input_ids=ids[:, :64], use_cache=False)  # what the first call keeps for good
    reset_peak()
    before = peak_bytes()
    if side == "hidden states":
        with torch.inference_mode():
            checkpoint.decoder(input_ids=ids, use_cache=False)
    elif side == "ours":
        ours(checkpoint, samples, ALL)
    else:
        bare(model, samples, 1)
    return peak_bytes() - before


def in_own_process(side: str, vocabulary: int, tokens: int) -> int:
    """`measure` in a new process."""
    command = [sys.executable, "-m", "tests.benchmarks.memory", "--only", side, str(vocabulary), str(tokens)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def compare(vocabulary: int, tokens: int) -> tuple[float, float | None]:
    """Extra GiB of ours, and of whole logits if there is room."""
    hidden = in_own_process("hidden states", vocabulary, tokens)
    extra = (in_own_process("ours", vocabulary, tokens) - hidden) / GIB
    if 3 * 4 * vocabulary * tokens > WHOLE_LOGITS_LIMIT:
        return extra, None
    return extra, (in_own_process("whole logits", vocabulary, tokens) - hidden) / GIB


def main() -> None:
    """Measure every case and print the table."""
    made = parser(__doc__)
    made.add_argument("--only", nargs=3, metavar=("SIDE", "V", "T"), help=argparse.SUPPRESS)
    options = made.parse_args()
    if options.only:
        print(measure(options.only[0], int(options.only[1]), int(options.only[2])))
        return
    result = {}
    rows = []
    for vocabulary, tokens in [(1000, 128)] if options.small else CASES:
        extra, whole = compare(vocabulary, tokens)
        rows.append((vocabulary, tokens, f"{extra:.3f}", "-" if whole is None else f"{whole:.3f}"))
        result[f"extra_gib_v{vocabulary // 1000}k_t{tokens}"] = round(extra, 3)
    print(table(("vocabulary", "tokens", "extra GiB, all signals", "extra GiB, whole logits"), rows))
    finish("memory", result, options)


if __name__ == "__main__":
    main()
