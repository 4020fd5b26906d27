"""Images, maskers, atlases, spaces and scaling. No torch."""
