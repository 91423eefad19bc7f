"""Nash-MD on a recurrent network of your own, written in Flax NNX; it needs no cache."""

import jax
import optax
from flax import nnx

import nlhf_jax as nlhf
from nlhf_jax.data import tokenizers
from nlhf_jax.models.decoder import decoder_from_apply

PROMPTS = ['one', 'two', 'three', 'four']


class Recurrent(nnx.Module):
  """A gated recurrent unit between an embedding and its transpose."""

  def __init__(self, vocabulary: int, width: int, rngs: nnx.Rngs):
    self.embed = nnx.Embed(vocabulary, width, rngs=rngs)
    self.rnn = nnx.RNN(nnx.GRUCell(width, width, rngs=rngs))

  def __call__(self, tokens):
    return self.rnn(self.embed(tokens), rngs=nnx.Rngs(0))  # the first carry is zero


tokenizer = tokenizers.train(PROMPTS, size=300)
graph, state, rest = nnx.split(Recurrent(len(tokenizer), 32, nnx.Rngs(0)), nnx.Param, ...)
decoder = decoder_from_apply(
  hidden=lambda params, tokens: nnx.merge(graph, nnx.State(params), rest)(tokens),
  logits=lambda params, hidden: hidden @ params['embed']['embedding'].T,
)
model = nlhf.LanguageModel(decoder, nnx.to_pure_dict(state), tokenizer)
judge = nlhf.judges.from_function(lambda _, left, right: list(map(str.__lt__, left, right)))
algorithm = nlhf.algorithms.nash_md_pg(beta=0.1, tau=0.01)
train = nlhf.make_train_step(model, algorithm, judge, optax.adam(1e-2), response_length=8)
train_state = train.init(jax.random.key(0))
for step in range(10):
  train_state, metrics = train(train_state, PROMPTS, jax.random.key(step))
  print(f'step {step}: payoff {metrics["payoff"]:+.3f}')
print(nlhf.generate(model, train_state.slots['policy'], PROMPTS, length=8))
