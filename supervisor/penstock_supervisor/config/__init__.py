"""Configuration: read in one place, checked as a whole, frozen."""
