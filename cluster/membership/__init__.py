"""The replicas of a cluster: begun, watched, scaled, replaced."""
