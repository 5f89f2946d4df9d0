"""Values: which nodes are stacked, and how they run, here or on many devices."""
