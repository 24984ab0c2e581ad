"""Parameters that several stages use."""
