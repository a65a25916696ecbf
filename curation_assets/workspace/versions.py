"""Versions of each stage's output, which are part of every fingerprint (`curation_assets.workspace.fingerprints`)."""

from __future__ import annotations

from curation_assets.tables.signals import SIGNALS, SignalName

# Raise a version when its stage's output changes for the same input; that stage and everything downstream is then
# computed again.
CORPUS_VERSION = 4
SEGMENTATION_VERSION = 2
SIGNAL_VERSIONS: dict[SignalName, int] = {name: signal.version for name, signal in SIGNALS.items()}
"""Versions of signals, from their declarations."""

SIGMA_VERSION = 1
SCORES_VERSION = 2
QUALITY_VERSION = 1
