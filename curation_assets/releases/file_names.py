"""Names of files and folders within a release."""

from __future__ import annotations

MANIFEST = "manifest.json"
CHECKSUMS = "SHA256SUMS"
PROVENANCE = "provenance.json"
CARD = "README.md"
CROISSANT = "croissant.json"
PAGE = "traces.html"
DATA_PARQUET = "data/train.parquet"
DATA_JSONL = "data/train.jsonl"
IMAGES = "images"
PLOTS = "plots"
