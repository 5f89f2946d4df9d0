"""How layers draw their parameters."""
