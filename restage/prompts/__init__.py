"""Prompt pairs: two captions that differ by one edit, and the instruction between them.

`writers.WRITERS` is the menu of who writes them; `stage.run_prompts` fills a run with them, `store` reads and writes
files.
"""
