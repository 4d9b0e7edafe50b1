"""What the shipped miniature models can do, on worlds that no training has seen: `python -m benchmarks.miniature`."""
