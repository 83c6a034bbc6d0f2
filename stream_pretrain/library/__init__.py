"""The stream and the model side of it for loops of other programs: `TokenStream` and `prepare`."""
