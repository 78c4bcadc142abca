"""Every family of MMDetection's configs with shuffle attention in its backbone: what works."""
