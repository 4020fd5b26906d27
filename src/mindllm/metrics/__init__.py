"""Scores as pure functions of arrays and strings; no store, no model."""
