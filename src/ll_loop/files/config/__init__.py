"""The configuration of a project, and where each value comes from."""
