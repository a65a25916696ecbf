"""Reports: comparisons of subsets."""
