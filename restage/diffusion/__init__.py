"""Diffusion models as Restage uses them: loading, the noise schedule, sampling, attention control, editing, training."""
