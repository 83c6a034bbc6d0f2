"""What a run would read, what its rows look like, and what it would take: before anything is trained."""
