"""What the scheduling core is made of; `cluster.scheduler` is what everybody else sees of it."""
