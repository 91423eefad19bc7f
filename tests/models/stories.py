"""Converts stories260K, a trained model in llama2.c's layout, to the Hugging Face layout."""

from pathlib import Path

import numpy as np
import tokenizers
import transformers
from safetensors.numpy import save_file
from tokenizers import decoders, models, normalizers, processors


def convert(source: Path, folder: Path) -> None:
  """Writes `config.json`, `model.safetensors` and the tokenizer's files to `folder`."""
  head = np.fromfile(source / 'stories260K.bin', np.int32, count=7)
  width, hidden, layers, heads, key_heads, vocabulary, max_positions = map(int, head)
  size = width // heads
  rest = np.fromfile(source / 'stories260K.bin', np.float32, offset=28)

  def take(*shape):
    nonlocal rest
    count = int(np.prod(shape))
    taken, rest = rest[:count], rest[count:]
    return taken.reshape(shape)

  def halves(matrix, count):
    """Reorders rotary pairs (2i, 2i + 1) to (i, i + size / 2)."""
    return matrix.reshape(layers, count, size // 2, 2, width).swapaxes(2, 3).reshape(matrix.shape)

  tensors = {'model.embed_tokens.weight': take(vocabulary, width)}
  stacked = {
    'input_layernorm': take(layers, width),
    'self_attn.q_proj': halves(take(layers, heads * size, width), heads),
    'self_attn.k_proj': halves(take(layers, key_heads * size, width), key_heads),
    'self_attn.v_proj': take(layers, key_heads * size, width),
    'self_attn.o_proj': take(layers, width, heads * size),
    'post_attention_layernorm': take(layers, width),
    'mlp.gate_proj': take(layers, hidden, width),
    'mlp.down_proj': take(layers, width, hidden),
    'mlp.up_proj': take(layers, hidden, width),
  }
  tensors['model.norm.weight'] = take(width)
  for name, matrices in stacked.items():
    for layer, matrix in enumerate(matrices):
      tensors[f'model.layers.{layer}.{name}.weight'] = np.ascontiguousarray(matrix)
  folder.mkdir(parents=True, exist_ok=True)
  save_file(tensors, folder / 'model.safetensors', metadata={'format': 'pt'})
  transformers.LlamaConfig(
    vocab_size=vocabulary,
    hidden_size=width,
    intermediate_size=hidden,
    num_hidden_layers=layers,
    num_attention_heads=heads,
    num_key_value_heads=key_heads,
    max_position_embeddings=max_positions,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
  ).save_pretrained(folder)
  _tokenizer(source / 'tok512.bin').save_pretrained(folder)


def _tokenizer(path: Path) -> transformers.PreTrainedTokenizerFast:
  """SentencePiece's BPE: pairs are merged by score, and unknown characters split into bytes."""
  content, pieces, at = path.read_bytes(), [], 4
  while at < len(content):
    score, length = np.frombuffer(content[at : at + 4], np.float32)[0], content[at + 4]
    pieces.append((content[at + 8 : at + 8 + length].decode(), float(score)))
    at += 8 + length
  texts = [text.strip('\n') if text in ('\n<s>\n', '\n</s>\n') else text for text, _ in pieces]
  texts = [text if number < 259 else text.replace(' ', '▁') for number, text in enumerate(texts)]
  vocabulary = {text: number for number, text in enumerate(texts)}
  merges = [
    (-pieces[number][1], text[:cut], text[cut:])
    for number, text in enumerate(texts[259:], 259)
    for cut in range(1, len(text))
    if text[:cut] in vocabulary and text[cut:] in vocabulary
  ]
  merges = [(left, right) for _, left, right in sorted(merges, key=lambda merge: merge[0])]
  model = tokenizers.Tokenizer(
    models.BPE(vocabulary, merges, unk_token='<unk>', byte_fallback=True, fuse_unk=True)
  )
  model.normalizer = normalizers.Sequence([normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')])
  model.decoder = decoders.Sequence(
    [
      decoders.Replace('▁', ' '),
      decoders.ByteFallback(),
      decoders.Fuse(),
      decoders.Strip(' ', 1, 0),
    ]
  )
  model.post_processor = processors.TemplateProcessing('<s> $A', special_tokens=[('<s>', 1)])
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=model, bos_token='<s>', eos_token='</s>', unk_token='<unk>'
  )
