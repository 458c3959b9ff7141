"""`secagg evaluate`: federated, alone, centralised, with DP and without, on the same split.

One file per task; each gives a `Study`, which is printed, and written as JSON and as a page, as it falls.
"""
