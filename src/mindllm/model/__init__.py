"""Everything between a subject's betas and text; nothing here knows a store."""
