"""Small PairRMs with random weights in both published layouts, and their logits in PyTorch."""

import json

import safetensors.torch
import tokenizers
import torch
import transformers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

WORDS = [
  'a',
  'b',
  'c',
  'good',
  'bad',
  'very',
  'is',
  'it',
  'the',
  'cat',
  'sat',
  'on',
  'mat',
  'why',
  'how',
  'no',
  'yes',
  '!',
  '?',
  '.',
]
PREFIXES = ['<|source|>', '<|candidate1|>', '<|candidate2|>', '<|candidate|>']
V3 = dict(
  relative_attention=True,
  position_buckets=256,
  max_position_embeddings=512,
  share_att_key=True,
  pos_att_type='p2c|c2p',
  norm_rel_ebd='layer_norm',
  position_biased_input=False,
  type_vocab_size=0,
)


def make_tokenizer(prefixes=True):
  """A SentencePiece-like Unigram with the special tokens of DeBERTa-v3 and those of PairRM."""
  pieces = [*(f'▁{word}' for word in WORDS), '▁', *'abcdefghijklmnopqrstuvwxyz!?.,<>|[]']
  vocabulary = [(token, 0.0) for token in ('[PAD]', '[CLS]', '[SEP]', '[UNK]')]
  vocabulary += [(piece, -1.0 - len(vocabulary) / 50 + len(piece)) for piece in pieces]
  tokenizer = tokenizers.Tokenizer(models.Unigram(vocabulary, unk_id=3, byte_fallback=False))
  tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme='always')
  tokenizer.decoder = decoders.Metaspace(prepend_scheme='always')
  tokenizer.add_special_tokens(['[PAD]', '[CLS]', '[SEP]', '[UNK]', '[MASK]'])
  if prefixes:
    tokenizer.add_tokens([AddedToken(prefix, normalized=True) for prefix in PREFIXES])
  tokenizer.post_processor = processors.TemplateProcessing(
    single='[CLS] $A [SEP]', special_tokens=[('[CLS]', 1), ('[SEP]', 2)]
  )
  return tokenizer


class Ranker(torch.nn.Module):
  """The ranker, with the published names of tensors."""

  def __init__(self, config, tasks):
    super().__init__()
    self.pretrained_model = transformers.DebertaV2Model(config)
    linear, width = torch.nn.Linear, config.hidden_size
    self.head_layer = torch.nn.Sequential(
      torch.nn.Dropout(0.05),
      linear(2 * width, width),
      torch.nn.Tanh(),
      torch.nn.Dropout(0.05),
      linear(width, tasks),
    )

  def forward(self, tokens, mask, prefixes):
    """Logits of rows that contain each of the first three prefixes once."""
    hidden = self.pretrained_model(tokens, attention_mask=mask).last_hidden_state
    source, first, second = (hidden[tokens == prefix] for prefix in prefixes[:3])
    scores = [self.head_layer(torch.cat([source, one], dim=-1)) for one in (first, second)]
    return (scores[0] - scores[1]).mean(dim=-1)


def make_ranker(tasks=1, **sizes):
  """A ranker with random weights, large enough to distinguish texts, and its config."""
  torch.manual_seed(0)
  count = make_tokenizer().get_vocab_size()
  config = transformers.DebertaV2Config(vocab_size=count, **V3 | sizes)
  ranker = Ranker(config, tasks).eval()
  with torch.no_grad():
    for name, parameter in ranker.named_parameters():
      gain = 1.5 * parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.3
      parameter.copy_(name.endswith('LayerNorm.weight') + torch.randn_like(parameter) * gain)
  return ranker, config


BLENDER = dict(hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=96)
PORT = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40)


def save(folder, layout, tasks=1):
  """Writes a small ranker to a folder in a published layout, and returns it."""
  ranker, config = make_ranker(tasks, **{'blender': BLENDER, 'port': PORT}[layout])
  if layout == 'blender':
    settings = dict(
      ranker_type='pairranker',
      model_type='deberta',
      model_name='microsoft/deberta-v3-large',
      source_maxlength=30,
      candidate_maxlength=12,
      n_tasks=tasks,
      drop_out=0.05,
      loss_type='instructgpt',
      inference_mode='bubble',
      fp16=True,
    )
  else:
    ids = make_tokenizer().token_to_id
    names = ('source_prefix_id', 'cand1_prefix_id', 'cand2_prefix_id', 'cand_prefix_id')
    settings = config.to_dict() | dict(
      architectures=['DebertaV2PairRM'],
      n_tasks=tasks,
      drop_out=0.05,
      sep_token_id=2,
      **{name: ids(prefix) for name, prefix in zip(names, PREFIXES, strict=True)},
    )
  (folder / 'config.json').write_text(json.dumps(settings))
  safetensors.torch.save_file(ranker.state_dict(), folder / 'model.safetensors')
  make_tokenizer(prefixes=layout == 'port').save(str(folder / 'tokenizer.json'))
  return ranker


def packed(tokenizer, source, first, second, longest=(1224, 412)):
  """The ids of a pair as in the port's model card, by the tokenizer's own truncation."""

  def encode(text, most):
    tokenizer.enable_truncation(most)
    return tokenizer.encode(text).ids

  ids = encode(PREFIXES[0] + source, longest[0])
  rest = (longest[0] + 2 * longest[1] - len(ids)) // 2
  return ids + encode(PREFIXES[1] + first, rest) + encode(PREFIXES[2] + second, rest)


def logits(ranker, rows):
  """PyTorch's logits of packed rows, padded to the longest."""
  tokenizer = make_tokenizer()
  most = max(map(len, rows))
  tokens = torch.tensor([row + [0] * (most - len(row)) for row in rows])
  mask = torch.tensor([[1] * len(row) + [0] * (most - len(row)) for row in rows])
  with torch.inference_mode():
    return ranker(tokens, mask, [tokenizer.token_to_id(prefix) for prefix in PREFIXES]).numpy()
