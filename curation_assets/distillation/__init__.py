"""Self-distillation: responses that a target's own checkpoint gives to the prompts of the pool."""
