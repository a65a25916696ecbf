"""Warehouses written by earlier versions, and the tests that the present version still serves them."""
