"""What every run imports, so that it need be imported only once."""

import torch
import transformers

import curation_assets.main_job
import resources.scorer
import resources.scoring.forward
import resources.trainer

__all__ = ["curation_assets", "resources", "torch", "transformers"]
