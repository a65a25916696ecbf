"""What a fine-tuning run is made of: recipes, examples and their weights, the loop, and what it leaves on disk.

`training.trainer` puts them together. torch, transformers and peft are imported inside functions: a base install works
without the training stack.
"""
