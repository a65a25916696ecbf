"""The `curate` command."""
