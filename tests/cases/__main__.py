"""Check a folder of cases: `python -m tests.cases --folder FOLDER`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

# Before anything imports tokenizers or transformers, as for the tests: no hub, no forking trouble.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from tests.cases.all_cases import CASES

WIDTH = 34


def main(words: Sequence[str] | None = None) -> int:
    """Print one row per case, and one JSON line with the summary; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.cases", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="folder that has a folder for each case")
    parser.add_argument("--only", action="append", help="run the cases whose names contain this text; repeatable")
    settings = parser.parse_args(words)
    chosen = [case for case in CASES if not settings.only or any(text in case.name for text in settings.only)]
    unknown = _unknown(settings.folder)
    right = 0
    print(f"{'case':<{WIDTH}} {'checked':<40} {'checks':>6} {'s':>4}  result", flush=True)
    for case in chosen:
        start = time.monotonic()
        found = case.run(settings.folder)
        seconds = time.monotonic() - start
        right += not found.differences
        result = "as expected" if not found.differences else f"DIFFERS: {'; '.join(found.differences)}"
        print(f"{case.name:<{WIDTH}} {case.summary:<40} {found.checks:>6} {seconds:>4.0f}  {result}", flush=True)
    if unknown:
        print(f"no check for: {', '.join(unknown)}")
    print(json.dumps({"cases": len(chosen), "as_expected": right}))
    return 0 if right == len(chosen) and not unknown else 1


def _unknown(folder: Path) -> list[str]:
    """Return the folders that no case is declared for."""
    if not folder.is_dir():
        return []
    return sorted({path.name for path in folder.iterdir() if path.is_dir()} - {case.name for case in CASES})


if __name__ == "__main__":
    sys.exit(main())
