"""Imports that every run needs, loaded once in the parent process."""

import torch
import transformers

import curation_assets.defs.main_job
import curation_resources

__all__ = ["curation_assets", "curation_resources", "torch", "transformers"]
