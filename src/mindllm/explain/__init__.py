"""What a model looks at, as maps and pictures."""
