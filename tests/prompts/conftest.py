import pytest

from restage.run import http
from tests.fake_server import KEY
from tests.prompts.fake_llm import serve


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.delenv("RESTAGE_LLM_MODEL", raising=False)
    monkeypatch.setattr(http, "FIRST_PAUSE_S", 0.01)
    with serve() as fake:
        yield fake
