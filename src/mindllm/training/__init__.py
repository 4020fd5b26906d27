"""Training: options, losses, the loop."""
