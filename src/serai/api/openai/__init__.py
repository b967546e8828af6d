"""The API in OpenAI's words, so that its clients work unchanged."""
