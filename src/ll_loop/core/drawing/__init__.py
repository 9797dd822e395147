"""Loops as pictures: boxes and arrows for terminals, Mermaid for pages."""
