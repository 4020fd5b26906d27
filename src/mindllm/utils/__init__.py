"""Errors, atomic files, tables, progress; nothing here imports another package."""
