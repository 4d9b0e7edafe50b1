"""One queue and one pool for all work that can be cut into tasks: pairs, edits, studies, the trials of a diagnosis.

A kind of work says how a task is done (`task.Work`); `queue` hands tasks out, `pool` and `ray_cluster` have them done
by the same `worker` in other processes, and `engine` is what the rooms above call. Nothing here knows what a pair or
an edit is.
"""
