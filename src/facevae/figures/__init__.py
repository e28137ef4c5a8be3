"""What the pictures show, drawing, and PNG.

No settings of a user or a notebook change a picture. They are overridden here, before any module imports matplotlib:
its import would fail at a backend that is not installed or at a damaged matplotlibrc.
"""

import os

os.environ["MPLBACKEND"] = "agg"
os.environ["MATPLOTLIBRC"] = os.devnull  # instead of the file in the home folder

import matplotlib

matplotlib.rcdefaults()  # because a matplotlibrc in the working directory is read all the same
