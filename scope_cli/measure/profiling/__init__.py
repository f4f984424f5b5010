"""scope profile: what a run will take, what it took, and pictures of both."""
