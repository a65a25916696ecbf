"""The methods, a file each (or a family of methods that differ in a line): see `curation_assets.scores.method`."""
