"""The classes of matplotlib that draw, without a user's or a notebook's settings: the only place that imports it.

Its import reads the variables that are overridden here. It would fail at a backend that is not installed or at a
damaged matplotlibrc.
"""

import os

os.environ["MPLBACKEND"] = "agg"
os.environ["MATPLOTLIBRC"] = os.devnull  # instead of the file in the home folder

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

matplotlib.rcdefaults()  # because a matplotlibrc in the working directory is read all the same

__all__ = ["Figure", "FigureCanvasAgg", "MaxNLocator", "Rectangle"]
