"""The schema of curation.yaml and how it is loaded."""
