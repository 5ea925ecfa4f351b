"""What happened: a row per finished request, percentiles, counts of faults."""
