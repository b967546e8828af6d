"""The process in which one engine is loaded, and what it says and hears."""
