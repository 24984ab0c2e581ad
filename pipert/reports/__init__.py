"""What a pass did: traces, times, memory, and costs measured from them."""
