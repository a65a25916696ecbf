"""Post-training evaluation: fine-tune models on selected samples, and test them on held-out benchmarks."""
