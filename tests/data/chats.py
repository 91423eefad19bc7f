"""Small tokenizers with chat templates like those of families of pretrained models."""

import json

from tokenizers import (
  AddedToken,
  Tokenizer,
  decoders,
  models,
  normalizers,
  pre_tokenizers,
  processors,
  trainers,
)

SAMPLE = [
  'What is the capital of France?',
  'Be brief, please.\n\nIt is Paris.',
  'user assistant []',
]

LLAMA = (
  '{{ bos_token }}{% for message in messages %}'
  "{{ '<|head|>' + message.role + '<|body|>\n\n' + message.content | trim + '<|eot|>' }}"
  '{% endfor %}{% if add_generation_prompt %}'
  "{{ '<|head|>assistant<|body|>\n\n' }}{% endif %}"
)
CHATML = (
  "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nHelp.<|im_end|>\n' }}{% endif %}"
  '{% for message in messages %}'
  "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
  "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
THINKING = (
  '{% for message in messages %}'
  "{{ '<|im_start|>' + message.role + '\n' }}"
  "{% if loop.last and message.role == 'assistant' %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
  "{{ message.content + '<|im_end|>\n' }}"
  "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA = (
  "{{ bos_token }}{% for message in messages %}{% if message.role == 'system' %}"
  "{{ raise_exception('no system messages') }}{% endif %}"
  "{{ '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' }}"
  "{{ message.content | trim + '<end_of_turn>\n' }}"
  "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
  '{{ bos_token }}{% for message in messages %}'
  "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
  "{{ raise_exception('roles must alternate') }}{% endif %}"
  "{{ '[INST] ' + message.content + '[/INST]' if message.role == 'user' "
  "else ' ' + message.content + eos_token }}{% endfor %}"
)
LLAMA2 = (
  '{% for message in messages %}'
  "{{ bos_token + '[INST] ' + message.content + ' [/INST]' if message.role == 'user' "
  "else ' ' + message.content + ' ' + eos_token }}{% endfor %}"
)
PHI = (
  '{% for message in messages %}'
  "{{ '<|' + message.role + '|>\n' + message.content + '<|end|>\n' }}"
  "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def byte_level(special):
  """Like GPT-2: words of bytes."""
  model = Tokenizer(models.BPE())
  model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  model.decoder = decoders.ByteLevel()
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
  model.train_from_iterator(SAMPLE, trainer)
  model.add_special_tokens(special)
  return model


def pieces(special):
  """Like SentencePiece: pieces of one long word, and bytes for text that has no piece."""
  trained = Tokenizer(models.BPE())
  trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme='never')
  trainer = trainers.BpeTrainer(vocab_size=120, show_progress=False)
  trained.train_from_iterator(SAMPLE, trainer)
  learned = json.loads(trained.to_str())['model']
  start = ['<unk>', *special, *(f'<0x{byte:02X}>' for byte in range(256))]
  vocab = {token: row for row, token in enumerate([*start, *learned['vocab']])}
  merges = [tuple(merge) for merge in learned['merges']]
  model = Tokenizer(
    models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token='<unk>', fuse_unk=True)
  )
  model.add_special_tokens(['<unk>', *special])
  return model


def llama():
  special = ['<|bos|>', '<|eos|>', '<|head|>', '<|body|>', '<|eot|>']
  model = byte_level(special)
  model.post_processor = processors.TemplateProcessing(
    single='<|bos|> $A', special_tokens=[('<|bos|>', model.token_to_id('<|bos|>'))]
  )
  return model, {'bos_token': '<|bos|>', 'eos_token': '<|eos|>', 'chat_template': LLAMA}


def chatml(template=CHATML):
  model = byte_level(['<|endoftext|>', '<|im_start|>', '<|im_end|>'])
  model.add_tokens(['<think>', '</think>'])  # which are no special tokens
  settings = {'eos_token': '<|endoftext|>', 'pad_token': '<|endoftext|>'}
  return model, settings | {'chat_template': template}


def gemma():
  model = pieces(['<bos>', '<eos>', '<start_of_turn>', '<end_of_turn>'])
  model.normalizer = normalizers.Replace(' ', '▁')
  model.decoder = decoders.Sequence(
    [decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse()]
  )
  model.post_processor = processors.TemplateProcessing(
    single='<bos> $A', special_tokens=[('<bos>', model.token_to_id('<bos>'))]
  )
  return model, {'bos_token': '<bos>', 'eos_token': '<eos>', 'chat_template': GEMMA}


def without_first_space():
  """Decodes as SentencePiece: removes the space that it puts before a text."""
  return decoders.Sequence(
    [
      decoders.Replace('▁', ' '),
      decoders.ByteFallback(),
      decoders.Fuse(),
      decoders.Strip(content=' ', left=1),
    ]
  )


def mistral():
  model = pieces(['<s>', '</s>', '[INST]', '[/INST]'])
  model.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme='first', split=False)
  model.decoder = without_first_space()
  return model, {'bos_token': '<s>', 'eos_token': '</s>', 'chat_template': MISTRAL}


def llama2():
  model = pieces(['<s>', '</s>'])
  model.normalizer = normalizers.Sequence([normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')])
  model.decoder = without_first_space()
  return model, {'bos_token': '<s>', 'eos_token': '</s>', 'chat_template': LLAMA2}


def phi():
  names = ['<|endoftext|>', '<|end|>', '<|user|>', '<|assistant|>', '<|system|>']
  model = byte_level([AddedToken(name, rstrip=True, normalized=False) for name in names])
  return model, {'eos_token': '<|endoftext|>', 'chat_template': PHI}


FAMILIES = {
  'llama': (llama, '<|eot|>'),
  'chatml': (chatml, '<|im_end|>'),
  'thinking': (lambda: chatml(THINKING), '<|im_end|>'),
  'gemma': (gemma, '<end_of_turn>'),
  'mistral': (mistral, '</s>'),
  'llama2': (llama2, '</s>'),
  'phi': (phi, '<|end|>'),
}


def save(folder, model, settings):
  """Writes a tokenizer in the published layout."""
  folder.mkdir(parents=True, exist_ok=True)
  model.save(str(folder / 'tokenizer.json'))
  settings = {'tokenizer_class': 'PreTrainedTokenizerFast'} | settings
  (folder / 'tokenizer_config.json').write_text(json.dumps(settings))
  return str(folder)
