"""The experiment that runs solvers on a game over a few actions."""
