"""What the controller is made of; `cluster.controller` puts it together."""
