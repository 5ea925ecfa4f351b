"""Simulating: workloads, comparisons of policies and what is told of them."""
