"""Chat templates come with models, so they are rendered where they can do no harm: in a child that can be killed."""
