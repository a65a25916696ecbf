"""What a run would cost and what it did cost, in the units of GRAPE's Table 13, tokens, seconds and bytes."""
