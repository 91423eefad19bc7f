"""Judges: functions that say how probable it is that one response is preferred to another."""

from nlhf_jax.judges.function import FunctionJudge, from_function

__all__ = ['FunctionJudge', 'from_function']
