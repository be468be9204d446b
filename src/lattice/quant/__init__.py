"""Quantising: models rounded to blocks of 4 to 8 bits, with a report of what that cost."""
