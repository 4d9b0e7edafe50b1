"""Clips as files and as motion: reading films and folders of frames, writing films, optical flow between frames."""
