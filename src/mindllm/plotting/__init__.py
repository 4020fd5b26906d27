"""Brain figures and training curves, as PNG bytes that need no display."""
