"""Five banks at ε = 3: noise shares inside the masked sum (R2) beside everything that one would try instead.

    python -m benchmarks.bank [--json] [--out FILE.json] [--seeds 5] [--rounds 30]

How it is measured: `benchmarks.site_table`.
"""

from benchmarks.site_table import main

if __name__ == "__main__":
    main("bank", "Five banks, consumer credit, R2", __doc__)
