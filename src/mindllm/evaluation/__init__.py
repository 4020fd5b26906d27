"""Predictions, and their scores beside the controls."""
