"""Methods and what they are made of: one module per method, parameters of selectors, arithmetic on Gram matrices."""
