"""What a call has written, as a value."""
