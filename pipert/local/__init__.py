"""What one process has of a pipeline: its stages and its ranks."""
