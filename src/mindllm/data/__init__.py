"""Data: the store, the readers that fill it, a simulator, and training batches."""
