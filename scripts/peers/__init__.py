"""What others use to stream a corpus, each as its documentation has it; `bench_peers` installs and measures them."""
