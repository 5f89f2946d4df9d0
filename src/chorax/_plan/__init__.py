"""What a call comes to: its arguments, methods, kinds, traces and results, all of it
before there is a value."""
