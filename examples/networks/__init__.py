"""Reference networks in plain torch, each with size arguments: full size for benchmarks, narrow for tests."""
