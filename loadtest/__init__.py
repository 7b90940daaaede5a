"""Load tests and side-by-side benchmarks."""
