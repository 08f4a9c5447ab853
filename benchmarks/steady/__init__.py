"""What `benchmarks.soak` and `benchmarks.disturb` share: load for minutes, memory, bodies."""
