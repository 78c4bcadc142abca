"""The tables of the paper: count, train, test and report them."""
