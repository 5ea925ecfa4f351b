"""What the cluster tells Prometheus and OpenTelemetry."""
