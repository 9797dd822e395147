"""What the machine asks for, done: actions, tools, probes, questions, files."""
