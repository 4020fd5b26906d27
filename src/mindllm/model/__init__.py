"""Everything between a person's betas and text; nothing here knows a store."""
