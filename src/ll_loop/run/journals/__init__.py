"""What a run was asked to do and all that it went through, and how it is brought back from there."""
