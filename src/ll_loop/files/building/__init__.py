"""From resolved mappings to frozen loops: types, defaults and kinds. Ranges and the graph are for rules."""
