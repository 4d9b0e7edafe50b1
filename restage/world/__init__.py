"""The procedural tabletop world: descriptions, captions, edits, and exact pictures of all of them."""
