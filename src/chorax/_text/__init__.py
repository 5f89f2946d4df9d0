"""How values and places read in messages and tables."""
