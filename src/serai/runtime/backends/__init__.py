"""Where workers live: in this process (tests), in child processes, on a cluster."""
