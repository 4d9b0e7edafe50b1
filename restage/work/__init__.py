"""One queue and one pool for all work that can be cut into tasks; nothing here knows what a pair or an edit is."""
