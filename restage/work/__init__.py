"""One queue and one pool for all work that can be cut into tasks: pairs, edits, studies, the trials of a diagnosis.

A kind of work says how a task is done (`task.Work`); nothing here knows what a pair or an edit is.
"""
