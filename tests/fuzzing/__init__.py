"""Hands odd loop files and templates to the reader (`scripts/fuzz`): complaints are right, tracebacks are not."""
