"""Which leaves have lanes, and operations on lanes."""
