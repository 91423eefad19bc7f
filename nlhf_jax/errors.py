"""What ends a run early without being a fault of the program."""


class UserError(Exception):
  """A mistake in what the user gave; `main` prints it as one sentence, without a traceback."""


class Interrupted(Exception):
  """The user asked to stop; everything needed to go on is saved."""


def first_line(error: Exception) -> str:
  """What an error says first, to go into a sentence."""
  return next(iter(str(error).splitlines()), type(error).__name__).rstrip('.')
