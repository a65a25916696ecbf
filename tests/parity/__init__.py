"""Agreement with the code that the methods' authors released: inputs from a seed, and the stored results of their code.

`python -m tests.parity` prints one row per method. None of their code is part of this project: each file in `data`
names repository and commit, what was run, and what stood in for parts that need a GPU, a hub or randomness.
"""
