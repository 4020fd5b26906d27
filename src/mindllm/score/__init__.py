"""Official text scores: captions, answers to questions, boxes; keyed by stimulus, from texts alone."""
