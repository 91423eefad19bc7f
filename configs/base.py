"""Settings that the experiments share. Rates are per update, lengths in tokens."""

import copy

from ml_collections import ConfigDict


def training(
  algorithm, *, steps, batch, learning_rate, evaluate_every, b1=0.9, b2=0.98, warmup=50, **arguments
):
  """The training of a stage: an algorithm of the catalogue, its arguments and its optimiser."""
  return ConfigDict(
    dict(
      algorithm=algorithm,
      arguments=arguments,
      steps=steps,
      batch=batch,
      accumulate=1,  # parts that a batch is split into, one gradient each, to save memory
      evaluate_every=evaluate_every,
      checkpoint_minutes=15.0,  # after which a checkpoint is saved before the next evaluation
      on_divergence='stop',  # or skip: leave out updates whose loss or gradient is not finite
      missing_verdicts=0.5,  # share of a judge's missing verdicts above which training stops
      optimizer=dict(
        name='adamw',  # or adafactor, rmsprop: with b1=0
        learning_rate=learning_rate,
        warmup=warmup,
        b1=b1,
        b2=b2,
        decay=0.01,
        clip=1.0,
        rounding='stochastic',  # or kahan, nearest: how updates are rounded to bfloat16
      ),
    ),
    sort_keys=False,
  )


def policy(
  algorithm,
  *,
  steps=300,
  batch=64,
  learning_rate=1e-3,
  b1=0.0,
  judge='learned',
  feedback='probability',
  entries='policy',
  async_judge=False,
  **arguments,
):
  """A policy. By default there is no momentum, because it makes the last iterate orbit a cycle.

  `judge` is learned, reward, gpm, lengths, pairrm, remote, oracle, FILE.py:function, or several as
  mean(learned,gpm); `feedback` probability or vote; `entries` the slots that enter the tournament,
  separated by commas. With `async_judge`, responses are judged while the policy trains on the
  previous ones, one update late. `filters` are of all samples that it trains on: at a temperature,
  the tempered policy is trained.
  """
  row = training(
    algorithm,
    steps=steps,
    batch=batch,
    learning_rate=learning_rate,
    evaluate_every=50,
    b1=b1,
    b2=0.95 if b1 == 0 else 0.98,
    warmup=10,
    **arguments,
  )
  row.update(judge=judge, feedback=feedback, entries=entries, async_judge=async_judge)
  row.sampler = 'built_in'  # or server: config.generation_server
  row.filters = dict(temperature=1.0, top_k=0, top_p=1.0)
  return row


def with_opponent(
  row,
  *,
  reads,
  tau,
  reward='regularised',
  learning_rate=2e-3,
  instruction='Improve the previous answer.',
):
  """The policy of self-play, against an opponent that is trained beside it.

  It `reads` the prompt alone or the policy's response, which the instruction asks it to answer; its
  KL costs `tau`. The policy's `reward` is regularised, with the opponent's KL, or payoff, without.
  In the instruction, {prompt} stands for the text of the prompt.
  """
  row.opponent = ConfigDict(
    dict(
      reads=reads,  # prompt or response
      tau=tau,
      reward=reward,
      learning_rate=learning_rate,  # time scale; all else is as in the optimizer of the policy
      instruction=instruction,
    ),
    sort_keys=False,
  )
  return row


def with_prompter(row, *, pool, tau, learning_rate=0.05):
  """A policy with an opponent that reads prompts, which a prompter chooses among the first `pool`.

  Leaving the prompts of the data costs the prompter `tau` a nat.
  """
  settings = dict(kind='pool', pool=pool, tau=tau, learning_rate=learning_rate)
  row.prompter = ConfigDict(settings, sort_keys=False)
  return row


def exploiter(algorithm, *, exploited='', **settings):
  """Exploiters of the entries that `exploited` names, separated by commas; of all without any."""
  row = training(algorithm, **settings)
  row.exploited = exploited
  return row


def offline(algorithm, *, steps=600, learning_rate=5e-4, **arguments):
  """A policy that trains on a fixed set of comparisons or demonstrations."""
  return policy(algorithm, steps=steps, learning_rate=learning_rate, b1=0.9, **arguments)


def trains(**policies):
  """A function `get_config` for an experiment that trains these policies."""

  def with_policies(source='synthetic'):
    config = get_config(source)
    config.policies.update(copy.deepcopy(policies))
    return config

  return with_policies


def get_config(source='synthetic'):
  """All settings but policies and exploiters, for the embedded task or for data of a `file`."""
  data = {
    'synthetic': dict(
      posts=32_768, held_out=1_024, prompt_length=25, response_length=14, vocabulary=1_024
    ),
    'file': dict(
      path='',  # files, folders or hub names, separated by commas
      schema='comparisons',  # of nlhf_jax.data.schemas: one for all sources, or one for each
      split='',  # the split to read of a source that has several
      part='1/1',  # 2/3: the second of three disjoint parts of the training prompts
      skip_bad=False,
      held_out=0.1,
      prompt_length=128,
      response_length=64,
      vocabulary=4_096,
    ),
  }
  if source not in data:
    raise ValueError(f"there is no data source '{source}'; use one of {sorted(data)}.")
  # Learning to copy facts from a post takes long; a few thousand comparisons are soon overfitted.
  sft_steps, judge_steps = {'synthetic': (700, 5_000), 'file': (300, 300)}[source]
  return ConfigDict(
    dict(
      experiment='language',
      seed=0,
      data=dict(source=source, **data[source]),
      # data=0: all remaining devices
      mesh=dict(data=0, fsdp=1, tensor=1, sampling='auto'),
      model=dict(
        hf='',  # folder or hub name of a pretrained model, which determines sizes and tokenizer
        width=64,
        layers=2,
        heads=4,
        key_heads=2,
        head_size=16,
        hidden=128,
        rotary_base=10_000.0,
        compute='float32',
        weights='float32',
        remat='nothing',
        lora=dict(rank=0, alpha=16.0, targets='query,key,value,out,gate,up,down'),
      ),
      sft=training('sft', steps=sft_steps, batch=64, learning_rate=4e-3, evaluate_every=100),
      preference_model=training(
        'preference_model',
        steps=judge_steps,
        batch=32,
        learning_rate=2e-3,
        evaluate_every=judge_steps // 10,
      ),
      reward_model=training(
        'reward_model',
        steps=judge_steps,
        batch=32,
        learning_rate=2e-3,
        evaluate_every=judge_steps // 10,
      ),
      general_preference_model=ConfigDict(
        dict(
          training(
            'preference_model',
            steps=judge_steps,
            batch=32,
            learning_rate=2e-3,
            evaluate_every=judge_steps // 10,
          ),
          planes=4,  # rotation planes of a response's embedding
          # Factor of the embeddings; 0.1 for a pretrained model, whose hidden states are larger.
          scale=1.0,
        )
      ),
      # A published judge, by its folder or hub name.
      pairrm=dict(hf='llm-blender/PairRM-hf', batch=16, compute='float32'),
      # A language model behind an OpenAI-compatible endpoint; answers are stored beside the stages.
      remote=dict(
        url='',
        model='',
        key='OPENAI_API_KEY',  # environment variable that holds the key; empty for none
        template='summaries',  # or a pairwise prompt of the file below, such as pair-v2
        judge_prompts='',  # a file in the layout of FastChat's judge_prompts.jsonl
        concurrency=16,
        per_minute=0.0,  # maximum of requests; 0 for no limit
        timeout=120.0,
        retries=6,
        tolerated=0.2,  # share of unusable answers above which the run stops
        request='{}',  # fields that replace those of the template: {"max_tokens": 1}
        prices=dict(prompt=0.0, response=0.0),  # per million tokens, to report the cost
      ),
      # A vLLM or SGLang server, which samples for policies with sampler='server'.
      generation_server=dict(
        kind='vllm',  # or sglang
        url='',
        model='policy',
        key='',  # environment variable that holds the key; empty for none
        folder='',  # where weights are written for it
        timeout=600.0,
        retries=3,
        tolerated_gap=0.1,  # nats a token between its log-probabilities and ours
      ),
      # Judges that are combined: standard deviations that `shrink` subtracts, and the step of the
      # weights of the groups in `maxmin`.
      combined=dict(spreads=1.0, step=0.1),
      # The judges of the tournament, separated by commas; the last one measures learning curves.
      # Some of learned, reward, gpm, lengths, pairrm, remote; functions, as FILE.py:function or
      # module:function; and combinations, as mean(learned,gpm), midrange, shrink or agree.
      judges='learned',
      # One of learned, reward, gpm: a judge of this kind that only evaluates. It is trained on half
      # of the training prompts, and everything else on the other half.
      held_apart='',
      # How responses that the limit cut are judged: as they are, or loses: against one that ended
      # (by rewards: they have 5 less).
      unfinished='judged',
      # Conversations with a user, whose turns have at most config.data.response_length tokens.
      dialogue=dict(
        turns=1,  # of the policy, at most; 1: a single response, and no user
        # The user: FILE.py:function or module:function; a table FILE.json; data, for the messages
        # that the data recorded; or sft, the SFT policy, which reads the instruction.
        user='',
        instruction='Reply to the last message as the person who asked the first question.',
        reply_length=32,  # most tokens of a reply, those of the chat template included
      ),
      # Rounds in which each entry revises its response at inference, by the instruction; 0: none.
      refinement=dict(rounds=0, instruction='Improve the previous answer.'),
      curves=dict(prompts=256),  # held-out prompts that learning curves are measured on
      policies=ConfigDict(sort_keys=False),
      exploiter=ConfigDict(sort_keys=False),
      tournament=dict(
        prompts=1_024,
        batch=1_024,
        filters=dict(temperature=1.0, top_k=0, top_p=1.0),
        best_of=0,  # the best of this many responses of SFT competes, too; 0: it does not
        best_of_judge='learned',  # selects it; should be another judge than the one that scores
      ),
    ),
    sort_keys=False,
  )
