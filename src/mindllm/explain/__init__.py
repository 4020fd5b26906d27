"""Which voxels a model listens to, which speak for a text or a word, and what a lesion takes."""
