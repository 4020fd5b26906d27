"""What every file may use; nothing here imports another part of the package."""
