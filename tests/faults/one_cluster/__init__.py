"""Faults of a cluster of simulated engines on one node."""

REPLICAS, SLOTS = 3, 8
FROZEN_AFTER_S = 5.0
CLIENT_TIMEOUT_S = 4.0
