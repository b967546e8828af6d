"""What the server tells about itself: log lines, the context of a request, metrics."""
