"""What ``arl2 bench`` measures: a module for each part, and what all of them share.

``options`` says what is asked for, ``gate`` checks correctness before anything is timed, ``timing`` and ``machine``
measure, ``result`` is what comes out, and ``run`` puts them together.
"""
