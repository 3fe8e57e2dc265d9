"""The primitive layers, one subject a file."""
