"""The experiment that trains language models, stage by stage."""
