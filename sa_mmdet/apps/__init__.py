"""The programs behind tools/; the library doesn't import them."""
