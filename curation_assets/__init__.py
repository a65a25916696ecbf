"""The asset graph: one folder a stage, in the order in which data flows."""

import warnings

# Dagster marks some decorators that we rely on as beta or preview. Said once here, before any asset
# module is imported, rather than by every run of every user.
import dagster as dg

warnings.filterwarnings("ignore", category=dg.BetaWarning)
warnings.filterwarnings("ignore", category=dg.PreviewWarning)
