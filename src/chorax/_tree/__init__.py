"""Trees: paths, nodes, leaves, keys of paths, and what is remembered about them."""
