"""Diffusion models as Restage uses them: loading, noise schedule, sampling, attention control, editing, training."""
