"""Trees: paths, nodes, leaves, keys of paths, and what is remembered of them."""
