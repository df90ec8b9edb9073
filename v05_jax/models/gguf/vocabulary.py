"""The tokenizer of a GGUF file, built again as transformers has it, and checked by its own rules.

Two kinds can be: byte-level BPE (`gpt2`) with a pre-tokenizer that is known here, as in the
tokenizer.json files that the models were published with, and SentencePiece's BPE (`llama`), whose
merges follow from the scores of its tokens.
"""

from typing import NamedTuple
import unicodedata

from v05_jax.models import tokenizer as tokenizers
from v05_jax.models.gguf.file import File

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # tokenizer.ggml.token_type
SPACE = "▁"  # SentencePiece's sign for a space
# What is cut into words before merges apply; Llama 3's and Qwen's patterns differ in digits alone.
WORDS = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s"
  r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Rules(NamedTuple):
  """How one `tokenizer.ggml.pre` cuts text."""

  words: str = ""  # a pattern of words; "" = GPT-2's own
  digits_alone: bool = False  # before the words are cut
  nfc: bool = False  # Unicode's normal form C first
  whole_words: bool = False  # a word that is a token is taken as it is, whatever the merges say
  begins: bool = False  # with the BOS token, where the file does not say


PRE_TOKENIZERS = {
  "gpt-2": Rules(),
  "smollm": Rules(digits_alone=True),
  "llama-bpe": Rules(WORDS % r"\p{N}{1,3}", whole_words=True, begins=True),
  "qwen2": Rules(WORDS % r"\p{N}", nfc=True),
}
# Texts that must come back from their tokens as they were.
PROBES = (
  "Hello world! It's 12345 + 67.89 = x, isn't it?",
  "  two  spaces,\ttabs\t\tand\n\nlines \n ",
  "naïve café, Straße, Привет, 你好, こんにちは, مرحبا, 🙂👩‍👩‍👧",
  "def f(x):\n    return x ** 2  # ½ of 10,080\r\n",
)


def build(file: File, rows: int, positions: int):
  """(tokenizer of transformers, tokens that end a response, its EOS first).

  rows: of the model's embedding. positions: the longest text that the model was made for. Raises
  ValueError naming the file and the key for a kind that cannot be built, and for keys that are
  missing or do not fit each other.
  """
  kind = file.value("tokenizer.ggml.model", str)
  if kind not in ("gpt2", "llama"):
    raise ValueError(
      f"{file.path}: tokenizer.ggml.model: found {kind!r}, expected one that can be built again: "
      "gpt2 (byte-level BPE) or llama (SentencePiece's BPE)"
    )
  tokens = _tokens(file, rows)
  kinds = _list(file, "tokenizer.ggml.token_type", int, len(tokens))
  # Rows of the embedding that have no token are listed under made-up names.
  vocab = {
    token: i for i, token in enumerate(tokens) if not (kinds[i] == UNUSED and token == f"[PAD{i}]")
  }
  backend = (_byte_level if kind == "gpt2" else _sentence_piece)(file, vocab, kinds)
  _add_whole_tokens(backend, vocab, kinds)
  ids = {name: _id(file, name, tokens) for name in ("bos", "eos", "unknown", "padding")}
  if ids["eos"] is None:
    raise ValueError(
      f"{file.path}: tokenizer.ggml.eos_token_id: found no such key, expected an integer: no "
      "response could end"
    )
  _add_ends(file, backend, ids, tokens)
  names = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
  special = {f"{names[k]}_token": tokens[i] for k, i in ids.items() if i is not None}
  tokenizer = tokenizers.wrap(backend, model_max_length=positions, **special)
  tokenizer.chat_template = _templates(file)
  stop = [ids["eos"], _id(file, "eot", tokens), _id(file, "eom", tokens)]
  return tokenizer, tuple(dict.fromkeys(i for i in stop if i is not None))


def check(file: File, tokenizer):
  """Raises ValueError where a tokenizer does not do what its own tokens and merges say."""
  vocab = tokenizer.get_vocab()
  backend = tokenizer.backend_tokenizer
  alphabet = {token for token in vocab if len(token) == 1}
  for text in PROBES:
    if is_byte_level(file) and not set(_bytes_of(text)) <= alphabet:
      continue  # a few vocabularies lack bytes that their training texts had not
    found = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False))
    if found != unicodedata.normalize("NFC", text):
      raise ValueError(
        f"{file.path}: tokenizer.ggml.tokens: found a tokenizer that turns {text!r} into {found!r}"
      )
  for token, added in backend.get_added_tokens_decoder().items():
    if tokenizer.encode(added.content, add_special_tokens=False) != [token]:
      raise ValueError(
        f"{file.path}: tokenizer.ggml.tokens: found {added.content!r}, expected its text to be "
        f"token {token} alone"
      )
  if tokenizer.chat_template is not None:
    _check_template(file, tokenizer)


def behaviour(tokenizer) -> tuple:
  """A description that is equal for two tokenizers which do the same. Their files may differ, as
  transformers has classes for some models that write the same rules in another way."""
  ends = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
  ids = [tokenizer.encode(text) for text in PROBES]
  return tokenizer.get_vocab(), ends, tokenizer.chat_template, ids, tokenizer.batch_decode(ids)


def lacking(tokenizer) -> int:
  """Bytes of UTF-8 that a byte-level tokenizer has no token for: characters with them are lost."""
  from tokenizers import pre_tokenizers

  never = {chr(byte) for byte in (0xC0, 0xC1, *range(0xF5, 0x100))}  # in no text; as they are named
  return len(set(pre_tokenizers.ByteLevel.alphabet()) - never - tokenizer.get_vocab().keys())


def _check_template(file: File, tokenizer):
  question = "What is 2 + 3?"
  try:
    text = tokenizer.apply_chat_template(
      [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
    )
  except Exception as error:  # of jinja2, and whatever a template raises
    raise ValueError(f"{file.path}: tokenizer.chat_template: cannot be used: {error}") from error
  if question not in text:
    raise ValueError(
      f"{file.path}: tokenizer.chat_template: found {text!r:.80} for the message {question!r}, "
      "expected the message in it"
    )


def _byte_level(file: File, vocab: dict[str, int], kinds: list[int]):
  from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

  pre = file.value("tokenizer.ggml.pre", str)
  if pre not in PRE_TOKENIZERS:
    raise ValueError(
      f"{file.path}: tokenizer.ggml.pre: found {pre!r}, expected a pre-tokenizer that can be built "
      f"again: {', '.join(PRE_TOKENIZERS)}"
    )
  rules, merges = PRE_TOKENIZERS[pre], _merges(file, vocab)
  backend = Tokenizer(models.BPE(vocab, merges, ignore_merges=rules.whole_words))
  _check_merges(file, Tokenizer(models.BPE(vocab, merges)), merges)
  steps = [pre_tokenizers.Digits(individual_digits=True)] if rules.digits_alone else []
  if rules.words:
    steps.append(pre_tokenizers.Split(Regex(rules.words), "isolated"))
  steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not rules.words))
  backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
  if rules.nfc:
    backend.normalizer = normalizers.NFC()
  backend.decoder = decoders.ByteLevel()
  return backend


def _merges(file: File, vocab: dict[str, int]) -> list[tuple[str, str]]:
  """The pairs of tokens that become one, the first to be merged first."""
  merges = []
  for i, text in enumerate(_list(file, "tokenizer.ggml.merges", str)):
    pair = tuple(text.split(" "))
    if len(pair) != 2 or not {*pair, "".join(pair)} <= vocab.keys():
      raise ValueError(
        f"{file.path}: tokenizer.ggml.merges: found {text!r} as number {i}, expected two tokens "
        "with a space between that are a third one together"
      )
    merges.append(pair)
  return merges


def _check_merges(file: File, backend, merges):
  """Whatever text a merge makes is one token by the merges up to it: those of a trained BPE apply
  to it as they did in training. Raises ValueError where the merges' order is another."""
  for pair in merges:
    token = "".join(pair)
    if len(backend.model.tokenize(token)) != 1:
      raise ValueError(
        f"{file.path}: tokenizer.ggml.merges: found {' '.join(pair)!r}, expected merges that make "
        f"one token of {token!r}: their order is not that of the training"
      )


def _sentence_piece(file: File, vocab: dict[str, int], kinds: list[int]):
  from tokenizers import Tokenizer, decoders, models, normalizers

  for key in ("remove_extra_whitespaces", "precompiled_charsmap"):
    name = f"tokenizer.ggml.{key}"
    if name in file.keys and file.setting(name):
      raise ValueError(f"{file.path}: {name}: found {file.setting(name)!r:.40}, supported: none")
  missing = [f"<0x{i:02X}>" for i in range(256) if f"<0x{i:02X}>" not in vocab]
  unknown = next((token for token, i in vocab.items() if kinds[i] == UNKNOWN), None)
  if missing or unknown is None:
    raise ValueError(
      f"{file.path}: tokenizer.ggml.tokens: found no {missing[0] if missing else 'unknown token'}, "
      "expected a token for every byte, and an unknown one"
    )
  scores = _list(file, "tokenizer.ggml.scores", float, len(kinds))
  backend = Tokenizer(
    models.BPE(
      vocab,
      _scored_merges(vocab, kinds, scores),
      byte_fallback=True,
      fuse_unk=True,
      unk_token=unknown,
    )
  )
  prefix = file.value("tokenizer.ggml.add_space_prefix", bool, True)
  backend.normalizer = normalizers.Sequence(
    [*([normalizers.Prepend(SPACE)] if prefix else []), normalizers.Replace(" ", SPACE)]
  )
  backend.decoder = decoders.Sequence(
    [
      decoders.Replace(SPACE, " "),
      decoders.ByteFallback(),
      decoders.Fuse(),
      *([decoders.Strip(" ", 1, 0)] if prefix else []),
    ]
  )
  return backend


def _scored_merges(vocab: dict[str, int], kinds: list[int], scores: list[float]):
  """Merges in the order that SentencePiece would take them: by the score of what they make."""
  parts = {token: i for token, i in vocab.items() if kinds[i] in (NORMAL, USER_DEFINED, UNUSED)}
  found = []
  for token, i in parts.items():
    for cut in range(1, len(token)):
      left, right = token[:cut], token[cut:]
      if left in parts and right in parts:
        found.append((-scores[i], i, parts[left], parts[right], left, right))
  return [pair[-2:] for pair in sorted(found)]


def _add_whole_tokens(backend, vocab: dict[str, int], kinds: list[int]):
  """Tokens whose text is never cut: those that control, which decoding may leave out, and more."""
  from tokenizers import AddedToken

  of = lambda *wanted: [token for token, i in vocab.items() if kinds[i] in wanted]
  backend.add_special_tokens(
    [AddedToken(token, normalized=False, special=True) for token in of(CONTROL, UNKNOWN)]
  )
  backend.add_tokens([AddedToken(token, normalized=False) for token in of(USER_DEFINED)])


def _add_ends(file: File, backend, ids: dict, tokens: list[str]):
  """BOS before and EOS after a text, where the file says so, or llama.cpp takes it for granted."""
  from tokenizers import processors

  pre = file.value("tokenizer.ggml.pre", str, "default") if is_byte_level(file) else ""
  begins = PRE_TOKENIZERS[pre].begins if pre else True
  ends = {}
  for name, default in (("bos", begins), ("eos", False)):
    if file.value(f"tokenizer.ggml.add_{name}_token", bool, default):
      if ids[name] is None:
        raise ValueError(
          f"{file.path}: tokenizer.ggml.{name}_token_id: found no such key, expected the token "
          f"that tokenizer.ggml.add_{name}_token adds"
        )
      ends[name] = tokens[ids[name]]
  if ends:
    of = lambda name: [ends[name]] if name in ends else []
    around = lambda text: [*of("bos"), text, *of("eos")]
    backend.post_processor = processors.TemplateProcessing(
      single=around("$A"),
      pair=[*around("$A"), *(f"{x}:1" for x in around("$B"))],
      special_tokens=[(tokens[ids[name]], ids[name]) for name in ends],
    )


def _templates(file: File) -> str | dict | None:
  """The chat template, or several by their names; None without one."""
  template = file.value("tokenizer.chat_template", str, None)
  named = {
    name: file.value(f"tokenizer.chat_template.{name}", str)
    for name in file.value("tokenizer.chat_templates", list, [])
  }
  return {"default": template, **named} if template is not None and named else template


def _tokens(file: File, rows: int) -> list[str]:
  tokens = _list(file, "tokenizer.ggml.tokens", str)
  if len(tokens) > rows:
    raise ValueError(
      f"{file.path}: tokenizer.ggml.tokens: found {len(tokens)}, expected at most the {rows} rows "
      "of the embedding"
    )
  first = {}
  for i, token in enumerate(tokens):
    if first.setdefault(token, i) != i:
      raise ValueError(
        f"{file.path}: tokenizer.ggml.tokens: found {token!r} as {first[token]} and {i}, expected "
        "it once"
      )
  return tokens


def _list(file: File, key: str, kind: type, size: int | None = None) -> list:
  found = file.value(key, list)
  kinds = (int, float) if kind is float else kind
  wrong = [x for x in found if not isinstance(x, kinds)]
  if wrong:
    raise ValueError(f"{file.path}: {key}: found {wrong[0]!r:.80}, expected {kind.__name__} alone")
  if size is not None and len(found) != size:
    raise ValueError(f"{file.path}: {key}: found {len(found)}, expected {size}, one for each token")
  return found


def _id(file: File, name: str, tokens: list[str]) -> int | None:
  key = f"tokenizer.ggml.{name}_token_id"
  found = file.value(key, int, None)
  if found is not None and not 0 <= found < len(tokens):
    raise ValueError(f"{file.path}: {key}: found {found}, expected one of {len(tokens)} tokens")
  return found


def is_byte_level(file: File) -> bool:
  """Whether a file's tokens are those of byte-level BPE."""
  return file.value("tokenizer.ggml.model", str) == "gpt2"


def _bytes_of(text: str) -> str:
  """A text's bytes in the letters of byte-level BPE."""
  from tokenizers import pre_tokenizers

  split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  return "".join(part for part, _ in split.pre_tokenize_str(unicodedata.normalize("NFC", text)))
