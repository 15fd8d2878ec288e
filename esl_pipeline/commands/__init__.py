"""The esl-pipeline command: cli has its subcommands on one page, the others are modules of what belongs together."""
