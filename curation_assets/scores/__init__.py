"""sample_scores, step_scores and score_manifest: arithmetic over signals, without a model."""
