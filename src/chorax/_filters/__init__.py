"""Which nodes or leaves are meant: predicates, and what users write for them."""
