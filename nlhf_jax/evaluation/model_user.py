"""Users of conversations that are language models, frozen."""

from nlhf_jax.evaluation.generation import LoadedModel, make_respond
from nlhf_jax.sampling.users import FunctionUser, user_from_function

EXCHANGED = {'user': 'assistant', 'assistant': 'user'}


def make_model_user(
  model: LoadedModel, instruction: str, *, length: int, temperature: float = 1.0
) -> FunctionUser:
  """A language model as the user.

  It reads the instruction, and then the conversation with the roles exchanged, anew in every turn.

  Args:
    model: the user.
    instruction: what it should do, such as answer questions about a task.
    length: most tokens in a reply.
    temperature: of its replies.
  """
  respond = make_respond(model, length=length)

  def reply(conversations, seeds):
    seen = [
      [
        {'role': 'user', 'content': instruction},
        *({**message, 'role': EXCHANGED[message['role']]} for message in conversation),
      ]
      for conversation in conversations
    ]
    return respond(seen, temperature, seeds[0])

  return user_from_function(reply)
