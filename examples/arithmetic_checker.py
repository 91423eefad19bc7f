"""A checker of sums as a judge: python arithmetic_checker.py prints data for it."""

import json
import random
import re


def right(prompts, responses):  # rewards: two right answers, or two wrong ones, are a tie
  sums = [str(sum(map(int, re.findall(r'\d+', prompt)))) for prompt in prompts]
  return [float(answer.strip() == total) for answer, total in zip(responses, sums, strict=True)]


if __name__ == '__main__':  # demonstrations, of which a third are right
  random.seed(0)
  for _ in range(4_000):
    word, one, two = random.choice(['add', 'sum', 'total']), *random.choices(range(10), k=2)
    row = {'prompt': f'{word} {one} + {two}', 'response': str(one + two + random.choice([0, 1, 2]))}
    print(json.dumps(row))
