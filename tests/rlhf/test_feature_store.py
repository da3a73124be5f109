"""FeatureStore: what is put in comes out, and nothing else does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from maxmin_rlhf.data.feature_store import FeatureStore, key_of
from maxmin_rlhf.data.store_writer import StoreWriter

ENCODER = {"model": "tiny", "fingerprint": "f00d", "pooling": "mean"}
TEXTS = ["one", ("a prompt", "a response"), [{"role": "user", "content": "three"}], "", "\x00", "ة<script>"]  # fmt: skip


def fill(path, n_features=70, dtype="float32", sizes=(4, 2)):
    """TEXTS in shards of these sizes; the features that were written."""
    features = torch.randn(len(TEXTS), n_features)
    with StoreWriter(path, ENCODER, n_features, dtype) as writer:
        first = 0
        for size in sizes:
            part = slice(first, first + size)
            writer.append([key_of(t) for t in TEXTS[part]], features[part], {"id": "p"})
            first += size
    return features


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("n_features", "pitch"), [(3, 64), (64, 64), (70, 128)])
def test_rows_come_back(tmp_path, dtype, n_features, pitch):
    features = fill(tmp_path, n_features, dtype)
    store = FeatureStore(tmp_path)
    store.verify()
    rows = store.rows([TEXTS[5], TEXTS[0], TEXTS[2], TEXTS[5]])
    expected = features[[5, 0, 2, 5]].to(store.dtype)
    assert len(store) == 6 and store.encoder == ENCODER
    got = store.gather(rows)
    assert got.is_contiguous() and torch.equal(got, expected)
    assert store._map(0)[0].shape == (4, pitch)
    assert not store._map(0)[0][:, n_features:].any()


def test_rows_beyond_memory_lie_in_a_file(tmp_path):
    features = fill(tmp_path)
    before = sorted(p.name for p in tmp_path.iterdir())
    got = FeatureStore(tmp_path).gather([4, 1, 1], max_bytes=0)
    assert torch.equal(got, features[[4, 1, 1]])
    assert f"{tmp_path}/.rows-" in Path("/proc/self/maps").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    del got
    assert f"{tmp_path}/.rows-" not in Path("/proc/self/maps").read_text()


def test_one_shard_is_its_own_map(tmp_path):
    features = fill(tmp_path, 64, sizes=(6,))
    store = FeatureStore(tmp_path)
    whole = store.gather(np.arange(6))
    assert whole.data_ptr() == store._map(0)[0].data_ptr() and torch.equal(whole, features)
    whole += 1  # pages are private: the file stays as it is
    store.verify()


def test_unknown_text_is_named(tmp_path):
    fill(tmp_path)
    store = FeatureStore(tmp_path)
    assert store.find(["one", "two", ("a prompt", "another")]).tolist() == [0, -1, -1]
    # A prompt and a response are not the text that they make together.
    assert store.find(["a prompta response"]).tolist() == [-1]
    with pytest.raises(ValueError, match="1 of 2 texts are not in the store, the first is number 1: 'two"):  # fmt: skip
        store.rows(["one", "two\x1b[2J"])


def test_every_key_is_found(tmp_path):
    """Also those that end in zero bytes, at which NumPy's byte strings end."""
    texts = [str(i) for i in range(2000)]
    assert any(key_of(text).endswith(b"\x00") for text in texts)
    with StoreWriter(tmp_path, ENCODER, 1, "float32") as writer:
        writer.append([key_of(text) for text in texts], torch.zeros(2000, 1), {})
    store = FeatureStore(tmp_path)
    assert store.rows(texts[::-1]).tolist() == list(range(2000))[::-1]
    assert (store.find([f"{text} " for text in texts]) == -1).all()


@pytest.mark.parametrize("size", [0, 7, 100, 1000])
def test_truncated_shard(tmp_path, size):
    fill(tmp_path)
    path = tmp_path / "shard-00001.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:size])
    with pytest.raises(ValueError, match=f"shard-00001.safetensors: expected {len(whole)} bytes, got {size}"):  # fmt: skip
        FeatureStore(tmp_path)


def test_missing_shard(tmp_path):
    fill(tmp_path)
    (tmp_path / "shard-00000.safetensors").unlink()
    with pytest.raises(ValueError, match="shard-00000.safetensors: the shard is missing"):
        FeatureStore(tmp_path)


def test_one_changed_bit_is_found(tmp_path):
    fill(tmp_path)
    path = tmp_path / "shard-00000.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    store = FeatureStore(tmp_path)
    with pytest.raises(ValueError, match="shard-00000.safetensors: expected sha256 [0-9a-f]{64}, got [0-9a-f]{64}"):  # fmt: skip
        store.verify()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"kind": "another"}'])
def test_foreign_index(tmp_path, content):
    (tmp_path / "index.json").write_bytes(content)
    with pytest.raises(ValueError, match="index.json: expected the index of a feature store"):
        FeatureStore(tmp_path)


def test_newer_format(tmp_path):
    fill(tmp_path)
    index = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps(index | {"format": 2}))
    with pytest.raises(ValueError, match="expected format 1, got 2"):
        FeatureStore(tmp_path)


def test_no_store(tmp_path):
    with pytest.raises(FileNotFoundError, match="no feature store there"):
        FeatureStore(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"fingerprint": "beef"}, "fingerprint: 'f00d' in the store, 'beef' now"),
        ({"pooling": "last"}, "pooling: 'mean' in the store, 'last' now"),
        ({"chat_template": True}, "chat_template: None in the store, True now"),
    ],
)
def test_another_encoder(tmp_path, change, says):
    fill(tmp_path)
    with pytest.raises(ValueError, match=f"made by another encoder .*{says}"), StoreWriter(tmp_path, ENCODER | change, 70, "float32"):  # fmt: skip
        pass
    with pytest.raises(ValueError, match="dtype: 'float32' in the store, 'float16' now"), StoreWriter(tmp_path, ENCODER, 70, "float16"):  # fmt: skip
        pass
    with StoreWriter(tmp_path, ENCODER | {"model": "elsewhere/tiny"}, 70, "float32") as writer:
        writer.append([key_of("new")], torch.ones(1, 70), {})
    assert FeatureStore(tmp_path).encoder == ENCODER


def test_an_empty_store_is_anybodys(tmp_path):
    for encoder in (ENCODER, {"model": "another"}):
        with StoreWriter(tmp_path, encoder, 5, "float16"):
            pass
        assert FeatureStore(tmp_path).encoder == encoder


def test_one_writer_at_a_time(tmp_path):
    code = (
        "import sys; from maxmin_rlhf.data.store_writer import StoreWriter\n"
        f"with StoreWriter(sys.argv[1], {ENCODER}, 3, 'float32'): print('in', flush=True); sys.stdin.read()"
    )
    run = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    assert run.stdout.readline() == b"in\n"
    with pytest.raises(ValueError, match="another process is writing"), StoreWriter(tmp_path, ENCODER, 3, "float32"):  # fmt: skip
        pass
    run.kill()
    run.communicate()
    with StoreWriter(tmp_path, ENCODER, 3, "float32"):
        pass


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="expected a feature store or an empty folder"), StoreWriter(tmp_path, ENCODER, 3, "float32"):  # fmt: skip
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
