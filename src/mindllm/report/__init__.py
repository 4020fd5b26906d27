"""Words, tables, pictures and pages from results."""
