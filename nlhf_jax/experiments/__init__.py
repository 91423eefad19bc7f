"""What a run does: a module for each kind of experiment, with a function `start`."""
