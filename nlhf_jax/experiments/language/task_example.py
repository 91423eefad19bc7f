"""An example of an embedded task for the report: one prompt, and one response of each style."""

from nlhf_jax.data import tokenizers
from nlhf_jax.data.batches import take
from nlhf_jax.data.dataset import Corpus
from nlhf_jax.tasks.summaries import generator


def task_example(corpus: Corpus) -> tuple[str, dict[str, str]] | None:
  """A held-out prompt, and style -> a perfect response to it; None for data of one's own."""
  if not corpus.annotator:
    return None
  first = take(corpus.held_out.prompts, slice(1))
  (prompt,) = tokenizers.prompt_texts(corpus.tokenizer, *first)
  by_style = corpus.annotator.perfect_responses([prompt])
  texts = [response for (response,) in by_style]
  return prompt, dict(zip(generator.STYLES, texts, strict=True))
