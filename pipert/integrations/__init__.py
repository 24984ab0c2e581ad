"""What other libraries' models need. Nothing here is imported before it is asked for."""
