"""Images, voxels, spaces and scaling; no torch."""
