"""The MIL ops, one function each; parameters carry the names that MIL gives them."""
