"""Games known by votes alone: how much data an equilibrium needs, and which data.

The algorithms of "A Theoretical Analysis of Nash Learning from Human Feedback under General
KL-Regularized Preference" (arXiv 2402.07314), on games of a few actions whose equilibria are exact.
"""
