"""What users call, and the road that every call takes."""
