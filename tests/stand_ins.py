"""Small files in the place of those that commands of the documentation name."""

import json
import shutil
from pathlib import Path

from nlhf_jax.storage import json_files, json_lines
from tests.evaluation import test_arena_hard as arena
from tests.experiments import pretrained
from tests.judges import published, test_judge_prompts
from tests.judges import test_malformed_files as fastchat

ROOT = Path(__file__).parents[1]
PROMPTS = [f'tell {number} red' for number in range(60)]
COMPARISONS = [
  {'prompt': prompt, 'chosen': f'{number} it is', 'rejected': 'no'}
  for number, prompt in enumerate(PROMPTS)
]
QUESTIONS = [{'prompt': prompt} for prompt in PROMPTS]
OUTPUTS = [{'instruction': prompt, 'output': 'yes', 'generator': 'theirs'} for prompt in PROMPTS]
CHATS = [
  [{'role': 'user', 'content': prompt}, {'role': 'assistant', 'content': 'yes'}]
  for prompt in PROMPTS
]
LINES = {
  **dict.fromkeys(('FILE.jsonl', 'PAIRS.jsonl', 'pairs.jsonl', 'FILE/pairs.jsonl'), COMPARISONS),
  'PROMPTS.jsonl': QUESTIONS,
  'prompts.jsonl': QUESTIONS,
  'CHATS.jsonl': [{'messages': chat} for chat in CHATS],
  'DIALOGUES.jsonl': [{'messages': [*chat, *chat]} for chat in CHATS],
  'THUMBS.jsonl': [
    {'prompt': prompt, 'completion': 'yes', 'label': number % 2 == 0}
    for number, prompt in enumerate(PROMPTS)
  ],
  'sums.jsonl': [{'prompt': f'add {n} + 1', 'response': str(n + 1)} for n in range(60)],
  'HuggingFaceH4/ultrafeedback_binarized/train_prefs.jsonl': [
    {'score_chosen': 8.0, 'score_rejected': 5.0}
    | {'chosen': chat, 'rejected': [chat[0], {'role': 'assistant', 'content': 'no'}]}
    for chat in CHATS
  ],
  'question.jsonl': fastchat.QUESTIONS,
  'gpt-4.jsonl': fastchat.REFERENCES,
  'arena_hard/question.jsonl': arena.QUESTIONS,
  'arena_hard/judge_prompts.jsonl': [arena.PROMPT],
  'o3-mini.jsonl': arena.make_answers('o3-mini'),
  'gemini.jsonl': arena.make_answers('gemini'),
  'model_judgment/gpt-4.1/m.jsonl': [arena.make_judgement('a1', 'A>B', 'A>B')],
}
DOCUMENTS = {
  'model_outputs.json': OUTPUTS,
  'REFERENCE.json': OUTPUTS,
  'LLMBar/Natural/dataset.json': [
    {'input': 'Why?', 'output_1': 'So.', 'output_2': 'No.', 'label': 1}
  ],
}
JUDGES = """
def conciseness(prompts, responses):
  return [float(len(response)) for response in responses]


def young(prompts, responses):
  return conciseness(prompts, responses)


def old(prompts, responses):
  return [-number for number in conciseness(prompts, responses)]
"""


def write(folder: Path) -> None:
  """Writes all files but those of runs."""
  for name, rows in LINES.items():
    json_files.write_lines(folder / name, rows)
  for name, content in DOCUMENTS.items():
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content))
  test_judge_prompts.prompts(folder)
  for name in ('judges.py', 'FILE.py'):
    (folder / name).write_text(JUDGES)
  (folder / 'MATRIX.csv').write_text('0.5,0.7\n0.3,0.5\n')
  (folder / 'examples').symlink_to(ROOT / 'examples')
  pretrained.save(folder / 'MODEL')
  sizes = json_lines.read_json(folder / 'MODEL' / 'config.json')
  json_lines.write_json(folder / 'MODEL' / 'config.json', sizes | {'max_position_embeddings': 4096})
  for name in ('DIR', 'SmolLM2-135M'):
    shutil.copytree(folder / 'MODEL', folder / name)
  ranker = folder / 'llm-blender' / 'PairRM-hf'
  ranker.mkdir(parents=True)
  published.save(ranker, 'port')
