"""What the views of a scene share while they are edited: depth, noise that is anchored in space, attention."""
