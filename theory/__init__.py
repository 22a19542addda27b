"""The mathematics of alignment collapse: score statistics, spectra, onset laws, instability conditions.

Only numpy, scipy and sympy: nothing here knows of models, tokens or devices. The modules are

* :mod:`theory.statistics`  the sufficient statistics of a skill's scores along an update path;
* :mod:`theory.spectra`     Fisher spectra, ranks, subspaces and how they overlap;
* :mod:`theory.onset`       the utility loss, its onset law and its finite-time bounds;
* :mod:`theory.aic`         the alignment instability condition with intervals, nulls and regime;
* :mod:`theory.functionals` those quantities for many weightings of the samples at once;
* :mod:`theory.resampling`  seeded bootstrap and split-half draws over samples;
* :mod:`theory.nulls`       what the same numbers would be for random directions.
"""
