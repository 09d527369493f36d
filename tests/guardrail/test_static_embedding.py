import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import BertConfig, BertModel, BertTokenizerFast

from guardrail import static_embedding
from guardrail.static_embedding import StaticEncoder

WORDS = ["bake", "bread", "brew", "tea", "how", "to", "a", "loaf"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[unused1]", "б", "##б", *WORDS, "##ing"]


def encoder() -> StaticEncoder:
    """An encoder with a random vector for each word."""
    backend = Tokenizer(models.WordPiece(vocab={token: i for i, token in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.enable_truncation(512)
    random = np.random.default_rng(0)
    lengths = np.array([len(t.strip("#")) if t in {*WORDS, "##ing"} - {"a"} else 0 for t in VOCABULARY])
    return StaticEncoder(
        backend,
        random.integers(-127, 128, (len(VOCABULARY), 16)).astype(np.int8),
        np.where(lengths > 0, 0.01, 0).astype(np.float32),
        lengths,
        np.full(len(VOCABULARY), 1 / len(VOCABULARY)),
    )


ENCODER = encoder()
TEXTS = st.lists(st.lists(st.sampled_from([*WORDS, "baking", "ббб", "?"]), max_size=8).map(" ".join), max_size=8)


@given(TEXTS)
def test_an_embedding_has_length_one_or_none_and_hangs_on_its_text_alone(texts):
    together = ENCODER.encode(texts)
    assert together.shape == (len(texts), 16)
    assert together.dtype == np.float32
    for text, vector in zip(texts, together, strict=True):
        length = np.linalg.norm(vector)
        assert length == 0 or length == pytest.approx(1)
        assert (ENCODER.encode([text])[0] == vector).all()
        assert (ENCODER.encode([" ".join(sorted(text.split(), reverse=True))])[0] == vector).all()


def test_a_word_counts_once_and_a_character_not():
    once, twice, marked = ENCODER.encode(["bake bread", "bake bake bread", "Bake a bread?"])
    assert (once == twice).all()
    assert (once == marked).all()


@pytest.mark.parametrize("text", ["", "?!", "ббббб", "bread ббббббб"])
def test_a_text_of_letters_or_nothing_has_no_embedding(text):
    assert not ENCODER.encode([text]).any()


def test_texts_past_the_window_are_cut():
    assert (ENCODER.encode(["bread " * 600 + "tea"]) == ENCODER.encode(["bread"])).all()


def test_what_is_frequent_weighs_less():
    texts = ["how to bake bread", "how to brew tea"]
    fitted = ENCODER.fitted(ENCODER.token_counts(["how to " * 100] * 300))
    plain, weighed = (float(np.prod(each.encode(texts), axis=0).sum()) for each in (ENCODER, fitted))
    assert weighed < plain
    assert ENCODER.token_counts(["bread tea tea"])[VOCABULARY.index("tea")] == 2


def test_an_encoder_can_be_sent_to_a_worker():
    assert (pickle.loads(pickle.dumps(ENCODER)).encode(["bake bread"]) == ENCODER.encode(["bake bread"])).all()


@pytest.fixture
def bert(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYGUARD_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "bert"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    BertModel(BertConfig(vocab_size=len(VOCABULARY), **sizes)).save_pretrained(folder)
    return folder


def test_an_encoder_is_distilled_once(bert, monkeypatch):
    first = StaticEncoder.distilled(str(bert))
    counting = [len(word) if len(word) > 1 else 0 for word in WORDS]
    assert first.lengths.tolist()[: len(VOCABULARY)] == [*[0] * 7, *counting, 3]
    assert first.encode(["how to bake bread"]).any()
    # The vectors, but for rounding, are what the principal components leave of the encoder's outputs.
    vectors = (first.vectors * first.scales[:, None])[first.lengths > 0]
    assert np.abs(vectors.mean(axis=0)).max() < 0.02
    covariance = vectors.T @ vectors
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 0.02 * covariance.max()

    def never(*_):
        raise AssertionError("distilled again")

    monkeypatch.setattr(static_embedding, "_token_vectors", never)
    again = StaticEncoder.distilled(str(bert))
    assert (again.vectors == first.vectors).all()
    (bert / "config.json").touch()  # another model, for all that can be told
    with pytest.raises(AssertionError, match="distilled again"):
        StaticEncoder.distilled(str(bert))


def test_a_killed_distillation_leaves_nothing_that_counts(bert, monkeypatch):
    def killed(vectors, path):
        path.write_bytes(b"half of it")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(static_embedding, "save_file", killed)
        with pytest.raises(KeyboardInterrupt):
            StaticEncoder.distilled(str(bert))
    assert StaticEncoder.distilled(str(bert)).encode(["bake bread"]).any()
