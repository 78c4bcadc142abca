"""The programs behind tools/; the library imports none of them."""
