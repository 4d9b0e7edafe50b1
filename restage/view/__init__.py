"""The 3D viewer: look at a scene in the browser, edit it by typing, go back and forth, take the result along.

`scene.py` and `session.py` hold the state and know no browser; `page.py` and the files beside it show it with viser.
"""

from restage.view.scene import ViewScene, open_scenes
from restage.view.session import ViewSession
from restage.view.versions import EditStopped, Version

__all__ = ["EditStopped", "Version", "ViewScene", "ViewSession", "open_scenes"]
