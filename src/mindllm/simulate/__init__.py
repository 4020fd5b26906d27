"""A simulator with planted truth: people with real anatomy who look at scenes whose every word is known."""
