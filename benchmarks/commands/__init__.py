"""The commands, a file per group: each `add_<command>` gives a parser its arguments and names what runs them.

Results go to stdout, progress and problems to stderr. Modules here import the rest of the harness when a command runs,
so that `--help` answers at once.
"""
