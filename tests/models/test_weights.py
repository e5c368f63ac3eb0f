"""Weights by tag: where they are looked for, which files are accepted, and what is said when none is."""

from __future__ import annotations

import functools
import hashlib
import http.server
import threading
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from models.base import ModelError
from models.weights import ARCHIVES, WeightsError, WeightStore, load_into, read

TAG = "resnet18.tv_in1k"
STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2), "b.weight": torch.zeros(1)}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty torch hub and Hugging Face cache, and no way out to the network."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *a, **k: None)
    monkeypatch.setattr("models.weights._torchvision_url", lambda tag: None)
    monkeypatch.setattr("huggingface_hub.hf_hub_url", lambda repo, name: (tmp_path / "absent").as_uri())
    return tmp_path / "hub"


def test_none_gives_nothing_and_marks_untrained():
    store = WeightStore("none")
    assert store.load(TAG) is None
    assert store.used == {TAG: "untrained"}


@pytest.mark.parametrize("name", [f"{TAG}.pth", f"{TAG}.pt", f"deep/er/{TAG}.pth", f"{TAG}.part.pth"])
def test_directory_finds_file_names(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(STATE, path)
    store = WeightStore(tmp_path)
    state = store.load(TAG)
    assert all(torch.equal(state[key], value) for key, value in STATE.items())
    assert store.used[TAG] == {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "file": path.name}


def test_safetensors_and_wrapped_files(tmp_path):
    save_file(STATE, tmp_path / "one.safetensors")
    torch.save({"state_dict": STATE}, tmp_path / "two.pth")
    store = WeightStore(tmp_path)
    assert set(store.load("one")) == set(store.load("two")) == set(STATE)


def test_other_tags_and_longer_names_are_not_taken(tmp_path):
    torch.save(STATE, tmp_path / "resnet18.tv_in1k2.pth")
    torch.save(STATE, tmp_path / "wide_resnet50_2.tv_in1k.pth")
    with pytest.raises(WeightsError, match=r"resnet18\.tv_in1k\.pth"):
        WeightStore(tmp_path).load(TAG)


def test_partial_file_is_taken_exactly_when_it_suffices(tmp_path):
    torch.save({"a.weight": STATE["a.weight"]}, tmp_path / f"{TAG}.part.pth")
    store = WeightStore(tmp_path)
    assert set(store.load(TAG, ["a.weight"])) == {"a.weight"}
    with pytest.raises(WeightsError, match=r"part\.pth lacks 1 of 2 keys, first 'b\.weight'"):
        store.load(TAG, ["a.weight", "b.weight"])
    torch.save(STATE, tmp_path / f"{TAG}.whole.pth")
    assert set(store.load(TAG, ["a.weight", "b.weight"])) == {"a.weight", "b.weight"}
    assert store.used[TAG]["file"] == f"{TAG}.whole.pth"


@pytest.mark.parametrize("mode", ["none", "auto", "directory"])
def test_a_substitute_is_taken_in_every_mode_and_named(tmp_path, hub, mode):
    torch.save(STATE, tmp_path / "other.pth")
    store = WeightStore(tmp_path if mode == "directory" else mode, substitutes={TAG: tmp_path / "other.pth"})
    for each in (store, store.fresh()):
        assert set(each.load(TAG, ["a.weight"])) == {"a.weight"}
        digest = hashlib.sha256((tmp_path / "other.pth").read_bytes()).hexdigest()
        assert each.used == {TAG: {"sha256": digest, "file": "other.pth", "substitute": True}}


def test_a_substitute_that_does_not_fit_names_the_first_layer_in_the_networks_order(tmp_path):
    torch.save(STATE, tmp_path / "other.pth")
    store = WeightStore("none", substitutes={TAG: tmp_path / "other.pth"})
    first = {"a.weight": torch.zeros(3, 2), "c": torch.zeros(1)}
    with pytest.raises(WeightsError, match=r"--weights-for resnet18.*'a\.weight' of shape \(2, 3\).*needs \(3, 2\)"):
        store.load(TAG, first)
    with pytest.raises(WeightsError, match=r"other\.pth lacks 1 of 2 keys, first 'c'"):
        store.load(TAG, {"c": torch.zeros(1), "a.weight": torch.zeros(3, 2)})
    assert store.used == {}


def test_a_misspelt_substitute_is_hinted_at(tmp_path):
    torch.save(STATE, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"did you mean 'resnet18\.tv_in1'"):
        WeightStore(tmp_path, substitutes={"resnet18.tv_in1": tmp_path / "other.pth"}).load(TAG)


@pytest.mark.parametrize("keep", [0, 10, 400])
def test_truncated_file_is_named(tmp_path, keep):
    torch.save(STATE, tmp_path / "whole")
    (tmp_path / f"{TAG}.pth").write_bytes((tmp_path / "whole").read_bytes()[:keep])
    with pytest.raises(WeightsError, match=rf"{TAG}\.pth cannot be read"):
        WeightStore(tmp_path).load(TAG)


def test_file_with_code_or_without_tensors_is_refused(tmp_path):
    torch.save({"path": Path("x")}, tmp_path / f"{TAG}.pth")
    with pytest.raises(WeightsError, match="cannot be read"):
        WeightStore(tmp_path).load(TAG)
    torch.save({"epoch": 3}, tmp_path / f"{TAG}.pth")
    with pytest.raises(WeightsError, match="no dict of tensors"):
        read(tmp_path / f"{TAG}.pth")


def test_missing_directory_is_said_at_once(tmp_path):
    with pytest.raises(WeightsError, match="does not exist"):
        WeightStore(tmp_path / "nowhere")
    assert issubclass(WeightsError, ModelError)


def test_load_into_names_key_and_shapes():
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    state = {key: value.clone() + 1 for key, value in net.state_dict().items()}
    del state["1.num_batches_tracked"]
    load_into(net, {**state, "extra": torch.zeros(1)}, "some.tag")
    assert torch.equal(net[0].weight, state["0.weight"])
    with pytest.raises(WeightsError, match=r"'0\.weight' has shape \(2, 4\), the network needs \(2, 3\)"):
        load_into(net, {**state, "0.weight": torch.zeros(2, 4)}, "some.tag")
    with pytest.raises(WeightsError, match=r"some\.tag.*no key '0\.bias'"):
        load_into(net, {k: v for k, v in state.items() if k != "0.bias"}, "some.tag")


def test_auto_downloads_once_then_uses_the_cache(tmp_path, hub):
    mirror = tmp_path / "mirror.pth"
    torch.save(STATE, mirror)
    store = WeightStore("auto", urls={TAG: mirror.as_uri()})
    assert set(store.load(TAG)) == set(STATE)
    assert store.used[TAG]["file"] == "mirror.pth"
    mirror.unlink()
    assert set(WeightStore("auto", urls={TAG: mirror.as_uri()}).load(TAG)) == set(STATE)


def test_a_file_in_an_archive_is_fetched_and_checked(tmp_path, hub, monkeypatch):
    archive = tmp_path / "release.zip"
    torch.save(STATE, tmp_path / "net.pth")
    with zipfile.ZipFile(archive, "w") as packed:
        packed.write(tmp_path / "net.pth", "release/net.pth")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    monkeypatch.setitem(ARCHIVES, "net", (archive.as_uri(), "0" * 64))
    with pytest.raises(WeightsError, match=r"release\.zip came with SHA-256"):
        WeightStore("auto").load("net")
    monkeypatch.setitem(ARCHIVES, "net", (archive.as_uri(), digest))
    store = WeightStore("auto")
    assert set(store.load("net")) == set(STATE) and store.used["net"]["file"] == "net.pth"
    archive.unlink()
    assert set(WeightStore("auto").load("net")) == set(STATE)  # from the cache
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match=r"put one of these there: net\.pth from file:"):
        WeightStore(tmp_path / "empty").load("net")


def test_auto_downloads_over_http_and_checks_the_hash_in_the_name(tmp_path, hub):
    served = tmp_path / "served"
    served.mkdir()
    torch.save(STATE, served / "net.pth")
    digest = hashlib.sha256((served / "net.pth").read_bytes()).hexdigest()
    (served / f"net-{digest[:8]}.pth").write_bytes((served / "net.pth").read_bytes())
    (served / "net-00000000.pth").write_bytes((served / "net.pth").read_bytes())

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(served)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        base = f"http://127.0.0.1:{server.server_port}"
        good = WeightStore("auto", urls={TAG: f"{base}/net-{digest[:8]}.pth"})
        assert set(good.load(TAG)) == set(STATE)
        with pytest.raises(WeightsError, match="SHA-256"):
            WeightStore("auto", urls={TAG: f"{base}/net-00000000.pth"}).load(TAG)
        assert not (hub / "checkpoints" / "net-00000000.pth").exists()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_auto_without_network_says_what_to_do(hub):
    with pytest.raises(WeightsError, match=r"resnet18\.tv_in1k\.pth.*--weights DIR.*--weights none"):
        WeightStore("auto").load(TAG)


def test_torchvision_addresses_of_pinned_tags():
    from models.weights import _torchvision_url

    assert _torchvision_url("wide_resnet50_2.tv_in1k").endswith("wide_resnet50_2-95faca4d.pth")
    assert _torchvision_url("wide_resnet50_2.tv2_in1k").endswith("wide_resnet50_2-9ba9bcbe.pth")
    assert _torchvision_url("wide_resnet50_2.racm_in1k") is None
    assert _torchvision_url("nonsense.tv_in1k") is None
