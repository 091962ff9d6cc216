"""Reading and writing of files: checks of untrusted files, atomic writing, and plain JSON."""
