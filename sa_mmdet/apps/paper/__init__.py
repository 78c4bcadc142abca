"""The tables of the paper: counted, trained, tested and reported."""
