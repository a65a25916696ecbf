"""Print how far our results agree with those of the authors' code: `python -m tests.parity`."""

from __future__ import annotations

import json

from tests.parity.comparisons import compare_all


def main() -> None:
    """Print one row per comparison, and one JSON line with the summary."""
    found = []
    print(f"{'method':<36} {'measure':<11} {'value':>9}  reference")
    for one in compare_all():
        found.append(one)
        mark = "" if one.agrees else "  DIFFERS"
        where = one.repository.removeprefix("https://github.com/")
        print(f"{one.method:<36} {one.measure:<11} {one.value:>9.3g}  {where} @ {one.commit[:7]}{mark}", flush=True)
    summary = {
        "methods": sorted({one.method.partition(":")[0] for one in found}),
        "agree": all(one.agrees for one in found),
        "smallest_jaccard": min((one.value for one in found if one.measure == "jaccard"), default=None),
        "largest_difference": max((one.value for one in found if one.measure == "difference"), default=None),
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
