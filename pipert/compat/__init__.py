"""Other libraries' names for what pipert does: a script changes its imports, and nothing else."""
