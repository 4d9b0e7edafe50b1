"""Pictures, clips and scenes from text; `restage generate` says by what is asked which of them is made."""
