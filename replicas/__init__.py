"""One replica: an engine on its accelerators, and the messages it exchanges."""
