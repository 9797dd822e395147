"""Runs loops made at random under little-loops and under ll-loop and compares what happens (`scripts/differential`)."""
