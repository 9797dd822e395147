"""The real agent command lines, offline: where they are, how they are set up, and a model's API that answers them."""
