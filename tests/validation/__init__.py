"""Validation sets and what compares the pool with them."""
