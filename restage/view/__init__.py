"""The 3D viewer: look at a scene in the browser, edit it by typing, go back and forth, take the result along.

`session.py` holds the state and knows no browser; `page.py` and the files beside it show it with viser.
"""

from restage.view.session import EditStopped, Version, ViewScene, ViewSession, open_scenes

__all__ = ["EditStopped", "Version", "ViewScene", "ViewSession", "open_scenes"]
