"""segmented_steps: where each step of a response, and its answer, begins and ends."""
