"""Models behind other servers: run in the server itself, where they take neither memory nor threads."""
