"""Turns of agent hosts and answers of models, within the limits of their accounts."""
