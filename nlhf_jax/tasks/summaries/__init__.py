"""The embedded task of the language-model runs: posts, their summaries, and raters with a cycle."""
