"""The page of a run, report.html: one file that needs no network and no server.

`gather` keeps in the run's folder what the page needs of the arrays (report.npz); the page itself
is drawn from the folder alone, at the end of a run and by `python -m hume_jax.report`.
"""
