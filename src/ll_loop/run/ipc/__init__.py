"""Live runs and those who ask about them: over a socket, from the journal when nobody listens."""
