"""Pictures of what a detector learns and sees."""
