"""`esl-pipeline demo`: a day and a night in a shop, judged label by label."""
