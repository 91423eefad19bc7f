"""Games known by votes alone: classes of preferences, offline and online learning, rates."""
