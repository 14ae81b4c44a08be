"""The command line: checked before any work, then handed to what a program does."""
