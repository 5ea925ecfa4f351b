"""The papers' experiments, run again: one module per study, one page of results."""
