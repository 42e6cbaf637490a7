"""What is trained: one seam, many methods."""
