"""Everything that imports Dagster: assets, sensors, jobs, the run launcher and the instance."""
