"""Opening files that others made: nothing runs, nothing leads out of a folder, and a bad file is one sentence.

And writing small files whole.
"""
