"""Which splats an edit may touch: masks of views lifted to splats, and the regions made from them."""
