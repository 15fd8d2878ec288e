"""`esl-pipeline shopify`: a Shopify shop's first day, how it stands, and its last."""
