"""What computes. `base` and `tasks` are imported anywhere; an engine itself only inside its worker."""
