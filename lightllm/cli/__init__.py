"""The command line: one module per command, each with its flags and a `run`; `main` finds the module by its name."""
