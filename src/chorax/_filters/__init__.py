"""Filters over nodes and leaves: predicates, and the forms users write."""
