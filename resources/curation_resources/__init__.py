"""What assets use: the outside world and the hardware. Nothing here imports `curation_assets`."""
