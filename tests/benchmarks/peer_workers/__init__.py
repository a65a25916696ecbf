"""What runs in processes of their own for tests.benchmarks.peers, some of it in the environments of the peers."""
