"""Storage, models, scoring and training for the assets. Nothing here imports `curation_assets`."""
