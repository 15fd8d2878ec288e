"""The groups of the esl-pipeline command that have a module of their own, and what all commands share."""
