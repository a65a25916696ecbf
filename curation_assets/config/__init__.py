"""The schema of curation.yaml, and loading it."""
