"""What the entry points share: the command line, run folders, and reports."""
