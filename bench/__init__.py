"""Benchmarks: what is timed was first found correct, and every time stands beside a peer's from the same run."""
