-- esl_pipeline, build 155: a later file holds the whole buffer.
select 1;
