"""Whether a module fits its annotations, given structure and shapes."""
