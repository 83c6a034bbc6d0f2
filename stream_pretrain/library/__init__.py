"""For training loops of your own: `TokenStream`, and `prepare` for the model that takes its batches."""
