from lclm_jax.parallel import xla_workarounds as backend


def flags_for(monkeypatch, version, flags):
    monkeypatch.setattr(backend, "version", lambda name: version)
    monkeypatch.setenv("XLA_FLAGS", flags)
    backend.avoid_known_faults()
    return backend.os.environ["XLA_FLAGS"]


def test_only_known_releases_are_touched_and_the_user_wins(monkeypatch):
    off = "--xla_cpu_experimental_ynn_fusion_type="
    assert flags_for(monkeypatch, "0.10.2", "--a=1") == f"--a=1 {off}"
    assert flags_for(monkeypatch, "0.12.0", "--a=1") == f"--a=1 {off}"
    assert flags_for(monkeypatch, "0.13.0", "--a=1") == "--a=1"
    assert flags_for(monkeypatch, "0.10.2", f"{off}dot") == f"{off}dot"
