"""A server that speaks the API of OpenAI, whose messages may hold a scan."""
