from tests.edit.conftest import TinyScene, tiny_scene

__all__ = ["TinyScene", "tiny_scene"]
