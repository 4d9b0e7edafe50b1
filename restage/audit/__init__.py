"""Looks at finished runs: shows them, checks them, compares two, packs them, and tells trackers about them."""
