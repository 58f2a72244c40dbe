"""Work on foreign input in a small process of its own, under limits of time and memory."""
