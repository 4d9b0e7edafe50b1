from restage.doctor import editors


def test_pipelines_of_the_cache_and_the_endpoint_are_listed(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    pipeline, endpoint = editors.check_editors()
    assert "none in the hub's cache" in pipeline.found and "hf download" in pipeline.advice
    assert endpoint.found.startswith("none") and not pipeline.is_problem
    folder = tmp_path / "models--owner--klein" / "snapshots" / "a"
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text('{"_class_name": "Flux2KleinPipeline"}')
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(3 * 10**9)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:8000/v1")
    monkeypatch.setenv("RESTAGE_EDITOR_MODEL", "klein")
    for memory, advice in ((None, "No GPU here"), (2.0, "offload=model"), (24.0, "")):
        monkeypatch.setattr(editors, "_gpu_memory_gb", lambda memory=memory: memory)
        pipeline, endpoint = editors.check_editors()
        assert pipeline.found == "owner/klein: Flux2KleinPipeline, 3.0 GB of weights"
        assert pipeline.advice.startswith(advice) or advice in pipeline.advice
    assert endpoint.found == "klein at http://localhost:8000/v1"
