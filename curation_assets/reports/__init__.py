"""What people look at: plots and traces."""
