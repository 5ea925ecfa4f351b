"""From results to a folder that survives a kill at any instant."""
