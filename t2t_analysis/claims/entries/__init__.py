"""One file a claim; a file that is put here is found."""
