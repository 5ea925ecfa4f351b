"""What exists once per cluster: the scheduling core, the controller, the client."""
