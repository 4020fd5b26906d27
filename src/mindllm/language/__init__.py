"""Text in and around the language model; no fMRI."""
