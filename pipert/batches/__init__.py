"""What a caller gives to a pass, how it is cut, and what comes back."""
