"""Direct edits: exact changes of the splats of a region, made at once and without an editor."""
