"""One INT8 grid, three formats, proven on the saved files."""
