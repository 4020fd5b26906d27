"""Pictures of brains and curves."""
