"""Every hot path as a ratio against a fixed reference of the same run, held against what was stored before."""
