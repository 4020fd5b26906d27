"""The instruction sources of brain instruction tuning, read from their official files and joined to a store."""
