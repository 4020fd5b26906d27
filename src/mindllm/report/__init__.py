"""Sentences, tables, figures and pages from typed results."""
