"""Trains the edit model on image pairs."""
