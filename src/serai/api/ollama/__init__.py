"""The API in Ollama's words, so that its clients work unchanged."""
