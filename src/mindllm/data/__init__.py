"""A prepared data set on disk, and the batches drawn from it."""
