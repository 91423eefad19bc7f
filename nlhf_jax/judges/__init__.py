"""Judges: functions that measure how much one response is preferred to another."""

from nlhf_jax.judges.function import FunctionJudge, from_function

__all__ = ['FunctionJudge', 'from_function']
