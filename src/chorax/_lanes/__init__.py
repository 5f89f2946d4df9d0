"""Which leaves have lanes, and what is done with lanes."""
