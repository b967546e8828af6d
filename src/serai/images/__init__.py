"""Pictures made by models: the job that makes them, the gallery that keeps them."""
