"""The kinds of toybox objects, one module per group."""
