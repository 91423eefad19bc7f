"""Small models of every family with random weights, made and saved by `transformers`."""

import torch
import transformers

# Sizes are all different, and windows shorter than the tests' texts.
SIZES = dict(
  vocab_size=67,
  hidden_size=24,
  intermediate_size=40,
  num_hidden_layers=4,
  num_attention_heads=6,
  num_key_value_heads=2,
  max_position_embeddings=64,
)
LLAMA3 = dict(
  rope_type='llama3',
  rope_theta=1000.0,
  factor=8.0,
  low_freq_factor=1.0,
  high_freq_factor=4.0,
  original_max_position_embeddings=16,
)
FAMILIES = {
  'llama': lambda: transformers.LlamaConfig(**SIZES, rope_parameters=LLAMA3, head_dim=4),
  'llama with biases': lambda: transformers.LlamaConfig(
    **SIZES, attention_bias=True, mlp_bias=True, tie_word_embeddings=True
  ),
  'mistral': lambda: transformers.MistralConfig(**SIZES, sliding_window=5, head_dim=8),
  'qwen2': lambda: transformers.Qwen2Config(
    **SIZES, use_sliding_window=True, sliding_window=6, max_window_layers=2
  ),
  'qwen3': lambda: transformers.Qwen3Config(**SIZES, head_dim=8, tie_word_embeddings=True),
  'gemma2': lambda: transformers.Gemma2Config(
    **SIZES,
    head_dim=8,
    sliding_window=5,
    query_pre_attn_scalar=11,
    attn_logit_softcapping=2.0,
    final_logit_softcapping=3.0,
  ),
  'gemma3': lambda: transformers.Gemma3TextConfig(
    **SIZES,
    head_dim=8,
    sliding_window=5,
    query_pre_attn_scalar=11,
    layer_types=['sliding_attention', 'sliding_attention', 'full_attention', 'sliding_attention'],
    rope_parameters={
      'sliding_attention': dict(rope_type='default', rope_theta=100.0),
      'full_attention': dict(rope_type='linear', rope_theta=10_000.0, factor=8.0),
    },
  ),
  'gpt2': lambda: transformers.GPT2Config(
    vocab_size=67, n_positions=64, n_embd=24, n_layer=3, n_head=4
  ),
}


def save(name, folder, dtype=torch.float32, shard='1GB', **changes):
  """Saves a random model of the family to a folder, and returns it."""
  torch.manual_seed(0)
  config = FAMILIES[name]()
  for field, value in changes.items():
    setattr(config, field, value)
  model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation='eager')
  with torch.no_grad():  # norms and biases too, which are initialised to one and zero
    for parameter in model.parameters():
      parameter.copy_(torch.randn_like(parameter) * 0.3)
  model = model.to(dtype).eval()
  model.save_pretrained(folder, max_shard_size=shard)
  return model
