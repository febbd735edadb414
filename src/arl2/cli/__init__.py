"""The command line: parsing, progress and printing over the library, nothing else."""
