"""The experiment that trains judges and compares them."""
