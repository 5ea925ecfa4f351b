"""Pure decisions: forecasts, orderings, admissions, evictions and the memory projection."""
