"""What attention costs, measured beside what it is compared with."""
