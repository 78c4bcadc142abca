"""Questions about a config, its data and its weights, each with one function."""
