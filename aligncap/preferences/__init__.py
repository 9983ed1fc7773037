"""What is preferred: candidates, judges, pairs."""
