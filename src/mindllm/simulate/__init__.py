"""Simulated fMRI of subjects who look at scenes with known captions."""
