"""Which layers a stage gets, and what each takes."""
