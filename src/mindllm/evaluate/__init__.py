"""Scores beside their controls, and the report that shows them."""
