"""The command line: thin, over HTTP, apart from `serve`, `doctor` and `db`."""
