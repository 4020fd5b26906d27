"""The authors' checkpoints as model folders."""
