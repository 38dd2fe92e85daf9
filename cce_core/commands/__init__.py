"""The command `cce`: sweep, train, inspect and look up from a shell; it needs the extra `cli`."""
