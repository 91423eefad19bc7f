"""Uploads an exported policy to the Hugging Face hub, or prints what would be uploaded."""

import re
from pathlib import Path

from huggingface_hub import HfApi, errors
from huggingface_hub.utils import validate_repo_id

from nlhf_jax.errors import UserError, first_line

TOKEN = re.compile(r'hf_\w+')  # what a token looks like


def check_name(name: str) -> None:
  """Refuses what cannot be the name of a repository.

  Raises:
    UserError: the message gives the form of a name.
  """
  try:
    validate_repo_id(name)
    owner, _, model = name.partition('/')
  except errors.HFValidationError:
    owner = model = ''
  if not (owner and model):
    raise UserError(f"--push='{TOKEN.sub('hf_...', name)}' is no name on the hub; write ORG/NAME.")


def push(folder: Path, name: str, confirmed: bool) -> None:
  """Uploads the files of a folder to the model repository `name`; a new one is private.

  Args:
    folder: of an exported policy, with its model card.
    name: ORG/NAME.
    confirmed: False only prints the files, and needs no network.

  Raises:
    UserError: if the hub refuses the upload, or cannot be reached.
  """
  files = sorted(path for path in folder.rglob('*') if path.is_file())
  print(f'\n{"Uploading" if confirmed else "Would upload"} to https://huggingface.co/{name}:')
  for path in files:
    print(f'  {path.relative_to(folder)}  {path.stat().st_size:,} bytes')
  if not confirmed:
    print('Nothing was uploaded; add --yes=True to do it. A new repository is private.')
    return
  try:
    api = HfApi()
    api.create_repo(name, private=True, exist_ok=True)
    api.upload_folder(repo_id=name, folder_path=folder, commit_message='Upload from nlhf_jax')
  except Exception as error:  # without a network those of the HTTP client, which are no OSError
    # An error of the client may repeat the request, with its token.
    reason = TOKEN.sub('hf_...', first_line(error))
    raise UserError(
      f'--push={name}: the upload failed ({reason}); log in with `hf auth login` as someone who '
      'may write there, and run again.'
    ) from None
  print(f'Uploaded: https://huggingface.co/{name}')
