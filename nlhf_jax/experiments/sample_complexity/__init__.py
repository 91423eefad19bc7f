"""The experiment that measures how many votes an equilibrium needs."""
