"""Errors that end a run early without being a fault of the program."""


class UserError(Exception):
  """A mistake in the user's input; `main` prints it as one sentence, without a traceback."""


class Interrupted(Exception):
  """The user asked to stop; everything needed to resume is saved."""


def first_line(error: Exception) -> str:
  """The first line of an error's message, or its type if that is empty, without a final period."""
  return next(iter(str(error).splitlines()), type(error).__name__).rstrip('.')
