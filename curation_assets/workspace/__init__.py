"""A configuration with its warehouse: paths, fingerprints, versions, limits."""
