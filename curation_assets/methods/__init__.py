"""Methods: one module per method, selector parameters, and arithmetic on Gram matrices."""
