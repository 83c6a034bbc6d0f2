"""What a run has read, read again from its cursors, without a model."""
