"""Shell scripts as text: where bash would take a value for program text, and how it is kept from that."""
