"""What stands around vLLM's server in a gateway process; `cluster.gateway` puts it together."""
