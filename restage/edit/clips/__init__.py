"""Edits of clips: the menu of methods, one file each, and the windows that a long clip is edited in."""
