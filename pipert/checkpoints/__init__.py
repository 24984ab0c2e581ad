"""Values of stages that were built without: from files, or as they begin."""
