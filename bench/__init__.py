"""Benchmarks of weft beside its peers and beside the limits of the machine.

    python -m bench                      # every family
    python -m bench norm                 # one family
    python -m bench norm --case '*int8*' # some cases of it
    python -m bench render RESULT.json   # a stored result as a Markdown table

A *case* is a shape with a name, a *peer* another implementation of it. Within a case, weft and its
peers run interleaved in one process; what is reported are medians over rounds, with the spread.
``bench/README.md`` says how each figure comes about.
"""
