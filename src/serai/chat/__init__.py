"""Chat: messages, sampling, prompts, the stream of an answer, and sessions that keep their history."""
