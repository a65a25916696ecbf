"""What SECURITY.md promises, a file a promise: each test fails if the defence that it is about is taken out."""
