"""The checkpoints that signals are measured at: the observed base model and the warm-up."""
