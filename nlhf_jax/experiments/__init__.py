"""What a run does: a folder for each kind of experiment, and what the kinds share."""
