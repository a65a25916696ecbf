"""Building blocks of a fine-tuning run: recipes, examples and their weights, the loop, and the checkpoint on disk.

`training.trainer` puts them together. torch, transformers and peft are imported inside functions: a base install works
without the training stack.
"""
